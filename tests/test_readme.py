"""The README's code runs as it stands, and its flags and targets exist."""

from __future__ import annotations

import dataclasses
import re
import runpy
import textwrap
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_code_for_ones_own_loop_runs() -> None:
    block = re.search(r"(?:^    .*\n|^\n)+", README[README.index("    import pydiffaccel as da") :], re.M)
    assert block is not None
    network = torch.nn.Conv2d(1, 1, 3, padding=1)

    def model(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return network(x)

    import pydiffaccel as da

    names = {
        "model": model,
        "unet": model,
        "images": torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)),
        "x_T": torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(1)),
        "denoiser": da.wrap_model(model, prediction_type="epsilon"),
        "optimizer": torch.optim.AdamW(network.parameters()),
        "total_steps": 10,
        "step": 3,
    }
    exec(compile(textwrap.dedent(block.group()), "README.md", "exec"), names)
    assert names["noise"].shape == (4, 1, 8, 8)
    assert names["images"].shape == (4, 1, 8, 8)
    assert bool(names["loss"].isfinite())
    assert names["plan"].nfe == 10
    assert names["better"].nfe == 10


def test_the_speeds_are_those_of_the_recorded_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    report = runpy.run_path(str(ROOT / "benchmarks" / "report_readme.py"))
    assert report["with_parts"](README, report["parts"]()) == README


def test_code_for_pipelines_runs() -> None:
    diffusers = pytest.importorskip("diffusers")
    import pydiffaccel as da

    block = re.search(r"(?:^    .*\n|^\n)+", README[README.index("    from pydiffaccel.diffusers import") :], re.M)
    assert block is not None

    class Pipeline:
        scheduler = diffusers.DDIMScheduler(clip_sample=False)

    names = {
        "pipeline": Pipeline(),
        "better": da.make_plan("ddim", da.VPSchedule.linear(1000), num_steps=5),
        "denoise": lambda x, sigma: 0.5 * x,
        "x": torch.randn(4, 3, generator=torch.Generator().manual_seed(0)),
        "sigmas": torch.tensor([5.0, 1.0, 0.0]),
    }
    exec(compile(textwrap.dedent(block.group()), "README.md", "exec"), names)
    assert names["pipeline"].scheduler.plan == names["better"]
    assert names["images"].shape == (4, 3)


def test_named_flags_exist() -> None:
    pytest.importorskip("tyro")
    from pydiffaccel.distill import DistillOptions
    from pydiffaccel.evaluate import EvaluateOptions
    from pydiffaccel.report import ReportOptions
    from pydiffaccel.sample import SampleOptions
    from pydiffaccel.trainer.config import TrainOptions

    commands = (TrainOptions, SampleOptions, DistillOptions, EvaluateOptions, ReportOptions)
    fields = {field.name for command in commands for field in dataclasses.fields(command)}
    section = README[README.index("## On the command line") : README.index("In an environment of your own")]
    flags = set(re.findall(r"--([a-z_]+)", section)) - {"dry", "standalone", "nproc_per_node"}
    assert {"coupling", "knn_k", "kl_terms", "data", "classes"} <= flags <= fields


def test_named_targets_and_files_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^    make (\w+)", README, re.M):
        assert f"\n{target}:" in makefile, target
    for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / link).exists(), link
