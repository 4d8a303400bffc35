"""Train a diffusion model: ``python -m pydiffaccel.train --help``."""

from __future__ import annotations

import contextlib
import shlex
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from pydiffaccel._cli import (
    INTERRUPTED,
    OK,
    CommandError,
    StopFlag,
    UsageError,
    cpu_threads,
)
from pydiffaccel.trainer.build import (
    make_coupling,
    make_curriculum,
    make_data,
    make_network_config,
    make_process,
    make_schedulers,
    make_weighting,
)
from pydiffaccel.trainer.config import TrainOptions
from pydiffaccel.trainer.config.presets import with_preset
from pydiffaccel.trainer.config.schedules import with_bare_flags
from pydiffaccel.trainer.launch import end_process, run_on_ranks
from pydiffaccel.trainer.parallel import Ranks

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from pydiffaccel.trainer.data import TrainData
    from pydiffaccel.trainer.loop import Trainer
    from pydiffaccel.trainer.run import RunFolder
    from pydiffaccel.trainer.trackers import Trackers

PROGRAM = "python -m pydiffaccel.train"


def main(argv: Sequence[str] | None = None) -> int:
    """The command line, on each rank under torchrun; returns the exit code."""
    argv = with_bare_flags(sys.argv[1:] if argv is None else argv)
    return run_on_ranks(TrainOptions, train, with_preset(argv), program=PROGRAM)


def train(options: TrainOptions, ranks: Ranks | None = None) -> int:
    """One run, from reading the data to the last picture; returns the exit code."""
    ranks = Ranks() if ranks is None else ranks
    if options.train_batch_size < ranks.count:
        raise UsageError(
            f"--train_batch_size must be at least the number of ranks, {ranks.count}, got {options.train_batch_size}"
        )
    device = ranks.join(options.device)
    if device.type == "cuda":
        _be_deterministic()
    with cpu_threads(options.num_threads), ranks.exchanging():
        code = _train(options, device, ranks)
        ranks.leave()
    return code


def _train(options: TrainOptions, device: torch.device, ranks: Ranks) -> int:
    from pydiffaccel.trainer.run import RunFolder
    from pydiffaccel.trainer.trackers import check_trackers

    folder = RunFolder(options.folder)
    with ranks.together():
        if ranks.is_main:
            check_trackers(options)
        _check_folder(folder, options)
        finished = _is_finished(folder, options)
    if ranks.any(finished) and not options.dry_run:
        return OK
    with ranks.together():
        data = _load(options)
        process = make_process(options)  # these refuse what does not fit before anything is written
        make_curriculum(options, process)
        make_weighting(options, process)
        make_network_config(options, data)
    if options.dry_run:
        _print_plan(options, data, folder, done=_steps_done(folder))
        print("dry run: nothing was written")
        return OK
    with contextlib.ExitStack() as held:
        with ranks.together():
            _hold(folder, options, ranks, held)
        return _train_locked(options, folder, data, device, ranks)


def _hold(folder: RunFolder, options: TrainOptions, ranks: Ranks, held: contextlib.ExitStack) -> None:
    """The main rank takes the folder's lock until held ends."""
    from pydiffaccel.trainer.run import RunLock

    if ranks.is_main:
        folder.path.mkdir(parents=True, exist_ok=True)
        held.enter_context(RunLock(folder))
        _check_folder(folder, options)  # again: the state before the lock was another process' to change


def _be_deterministic() -> None:
    """The same seed gives the same losses on a GPU too."""
    import os

    import torch

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)


def _check_folder(folder: RunFolder, options: TrainOptions) -> None:
    """Refuses a folder that holds something else, or a run with other options."""
    if not folder.holds_run():
        return
    different = options.differences(folder.read_options())
    if different:
        raise CommandError(
            f"{folder.path} holds a run with other options: {', '.join(different)}; give another --output_dir"
        )


def _is_finished(folder: RunFolder, options: TrainOptions) -> bool:
    """Whether the folder already has what the options ask for; then it also says so."""
    finished = folder.finished_steps()
    if finished < options.max_train_steps:
        return False
    print(f"the run in {folder.path} is finished: {finished:,} steps. {_next(folder, options)}")
    return True


def _steps_done(folder: RunFolder) -> int:
    from pydiffaccel.trainer.checkpoint import list_checkpoints

    found = list_checkpoints(folder.checkpoints)
    return found[-1][0] if found else 0


def _load(options: TrainOptions) -> TrainData:
    show = sys.stderr.isatty() and options.data is not None

    def progress(done: int) -> None:
        if show:
            print(f"\rreading images: {done:,}", end="", file=sys.stderr, flush=True)

    try:
        data = make_data(options, progress=progress, report=lambda message: print(message, file=sys.stderr))
    finally:
        if show:
            print(file=sys.stderr)
    for note in data.notes:
        print(f"note: {note}", file=sys.stderr)
    return data


def _evaluations(options: TrainOptions, steps: int) -> int:
    """Network evaluations of so many training steps."""
    return steps * options.images_per_step * options.evaluations_per_image


def _print_plan(options: TrainOptions, data: TrainData, folder: RunFolder, done: int) -> None:
    import torch

    from pydiffaccel.networks import build_network
    from pydiffaccel.trainer.describe import (
        describe_condition,
        describe_coupling,
        describe_kl,
        describe_process,
        describe_schedules,
    )

    config = make_network_config(options, data)
    with torch.device("meta"):
        parameters = sum(p.numel() for p in build_network(config).parameters())
    process = make_process(options)
    batch = options.images_per_step
    extras = [f"data scaled by {options.data_scale:g}"] if options.data_scale != 1 else []
    extras += describe_schedules(options)
    passes = options.max_train_steps * batch / len(data)
    lines = {
        "data": data.describe(),
        "network": f"UNet2DModel, channels {' '.join(map(str, config.channels))}, {parameters:,} parameters",
        **({"told": describe_condition(options)} if options.class_conditional else {}),
        "process": describe_process(options, process.prediction_type),
        **({"loss": describe_kl(options)} if options.forward == "kl" else {}),
        "coupling": describe_coupling(options),
        **({"also": ", ".join(extras)} if extras else {}),
        "steps": f"{options.max_train_steps:,} of {batch:,} images, {passes:,.1f} passes over the data"
        + (f"; {done:,} done" if done else ""),
        "evaluations": f"{_evaluations(options, options.max_train_steps):,} network evaluations for training",
        "output": str(folder.path),
    }
    for name, text in lines.items():
        print(f"{name:<12}{text}")


def _train_locked(options: TrainOptions, folder: RunFolder, data: TrainData, device: torch.device, ranks: Ranks) -> int:
    import torch

    from pydiffaccel.networks import build_network
    from pydiffaccel.trainer.checkpoint import load_checkpoint, write_json
    from pydiffaccel.trainer.ema import make_emas
    from pydiffaccel.trainer.loop import Trainer
    from pydiffaccel.trainer.resume import adopt_metrics, choose_checkpoint
    from pydiffaccel.trainer.run import RunDescription
    from pydiffaccel.trainer.trackers import Trackers, make_trackers

    config = make_network_config(options, data)
    description = RunDescription.of(
        make_process(options), make_coupling(options), config, data, options.conditioning_dropout_prob
    )
    with ranks.together():
        if folder.process.exists() and folder.read_description() != description:
            old = folder.read_description()
            raise CommandError(
                f"{folder.path} holds a run on other data ({old.data_name}, {old.num_images:,} images; "
                f"now {data.name}, {len(data):,}); give another --output_dir"
            )
    if ranks.any(_is_finished(folder, options)):
        return OK
    ranks.check_same("number of images", len(data))
    network = build_network(config, seed=options.seed)
    if options.channels_last:
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    emas = make_emas(network, options)
    for module in (network, *(ema.module for ema in emas.values())):
        ranks.place(module, device, options.parallel)
    optimizer = torch.optim.AdamW(network.parameters(), lr=options.learning_rate, weight_decay=0.0, fused=True)
    trainer = Trainer(
        network=network,
        process=description.process,
        coupling=description.coupling,
        optimizer=optimizer,
        data=data,
        options=options,
        curriculum=make_curriculum(options, description.process),
        schedulers=make_schedulers(options, optimizer),
        emas=emas,
        ranks=ranks,
    )
    start = choose_checkpoint(folder, options, description, ranks)
    with ranks.together():
        if start is not None:
            trainer.load(load_checkpoint(start, check=False))
    ranks.check_same("number of steps done", trainer.step)
    if ranks.is_main:
        # Written only now: a folder whose data or checkpoint was refused stays as it was.
        write_json(folder.options, options.to_dict())
        folder.write_description(description)
        if start is not None:
            adopt_metrics(folder, start, trainer.step)
    _print_plan(options, data, folder, trainer.step)
    if trainer.step:
        print(f"continuing after step {trainer.step:,}")
    trackers = make_trackers(options, folder, trainer.step) if ranks.is_main else Trackers({})
    with contextlib.closing(trackers):
        with StopFlag() as flag, _named_compile_errors():
            try:
                whole = trainer.fit(folder, stop=lambda: ranks.any_so_far(flag.stopped), trackers=trackers)
            except KeyboardInterrupt:
                raise KeyboardInterrupt("the same command continues from the newest checkpoint") from None
        if not whole:
            saved = f"after step {trainer.step:,}, which is saved" if trainer.step else "before the first step"
            print(f"interrupted {saved}; the same command continues from there", file=sys.stderr)
            return INTERRUPTED
        with ranks.together():
            weights = trainer.weights()
            if ranks.is_main:
                try:
                    _finish(folder, trainer, weights, trackers)
                except KeyboardInterrupt:
                    done = f"all {trainer.step:,} steps are saved; the same command makes the pictures"
                    raise KeyboardInterrupt(done) from None
    pictures = "samples.png, loss.png" if data.is_pictures else "loss.png"
    print(f"{folder.path} holds {pictures}, metrics.jsonl and model.safetensors. {_next(folder, options)}")
    return OK


@contextlib.contextmanager
def _named_compile_errors() -> Iterator[None]:
    """What torch.compile comes upon, as a machine without a compiler, in one sentence."""
    try:
        yield
    except Exception as error:
        if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        lines = (line.strip() for line in str(error).splitlines())
        reason = next((line for line in lines if line and not line.endswith(":")), type(error).__name__)
        raise CommandError(f"--compile: the network cannot be compiled ({reason}); leave the flag out") from error


def _finish(folder: RunFolder, trainer: Trainer, tensors: dict[str, dict[str, Tensor]], trackers: Trackers) -> None:
    """The model, the pictures and, last of all, the summary that marks the run as finished."""
    from pydiffaccel.trainer.checkpoint import write_json, write_tensors
    from pydiffaccel.trainer.ema import halflife_name
    from pydiffaccel.trainer.metrics import read_metrics
    from pydiffaccel.trainer.pictures import save_grid, save_loss_plot, to_uint8
    from pydiffaccel.trainer.samples import columns_of, draw_samples, seeds_of

    options = trainer.options
    weights = "average" if trainer.emas else "last"
    kept = next(iter(trainer.emas), "model")
    # One entry: safetensors writes several in an arbitrary order, and equal models would be unequal files.
    about = {"pydiffaccel": f"step {trainer.step}, {weights} weights"}
    write_tensors(folder.model, tensors[kept], about)
    for halflife in options.ema_halflife_images:
        write_tensors(folder.average(halflife), tensors[halflife_name(halflife)], about)
    rows = read_metrics(folder.metrics)
    save_loss_plot(folder.loss_plot, rows, f"{folder.path.name}: {options.forward}, coupling {options.coupling}")
    seeds = seeds_of(trainer)
    samples, plan = draw_samples(trainer, tensors)
    if trainer.data.is_pictures:
        images, columns = to_uint8(samples), columns_of(trainer)
        save_grid(folder.samples, images, columns)
        if not folder.sample_grid(trainer.step).exists():
            trackers.images(trainer.step, images, columns)
    last = [row["loss"] for row in rows[-50:] if row["loss"] is not None]
    write_json(
        folder.summary,
        {
            "step": trainer.step,
            "evaluations": _evaluations(options, trainer.step),
            "loss": sum(last) / len(last) if last else None,
            "skipped_steps": sum(row.get("skipped", False) for row in rows),
            "seconds": trainer.seconds,
            "coupling_seconds": trainer.coupling_seconds,
            "images_per_second": trainer.step * options.images_per_step / max(1e-9, trainer.seconds),
            "device": str(trainer.device),
            "weights": weights,
            "samples": {"solver": plan.solver, "nfe": plan.nfe, "seeds": [seeds[0], seeds[-1]]},
        },
    )


def _next(folder: RunFolder, options: TrainOptions) -> str:
    run = shlex.quote(str(folder.path))
    text = f"Next: python -m pydiffaccel.sample {run} --seeds 0-63 --steps 10"
    if options.data_kind == "latents":
        text = f"Next: pydiffaccel.sampler.load_run({str(folder.path)!r}) and its decoder, as in examples/latents.py"
    if options.forward != "flow":
        text += f"; or fit a faster sampler: python -m pydiffaccel.distill {run} --solver ddim --steps 10"
    return text


if __name__ == "__main__":
    end_process(main())
