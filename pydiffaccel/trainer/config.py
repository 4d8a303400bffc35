"""Options of a training run: what the command line spells, what options.json holds."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydiffaccel._cli import UsageError
from pydiffaccel.losses import KLObjective

# Options that change how a run is carried out but no number of its result: they may differ when it is continued.
_FREE = frozenset(
    {
        "output_dir",
        "checkpointing_steps",
        "checkpoints_total_limit",
        "num_threads",
        "device",
        "dry_run",
        "log_every",
        "coupling_ahead",
    }
)

# Flags that mean something under --forward kl alone. --kl_terms is not among them: it waits for --forward kl.
_KL = (
    *("kl_basis", "kl_renormalise", "kl_mode", "kl_path_times", "kl_partial", "kl_draws", "kl_weights"),
    "kl_microbatch",
)
_PATH_TIMES = 4

NoiseSchedule = Literal[
    "linear", "scaled_linear", "cosine", "continuous_linear", "continuous_cosine", "continuous_constant"
]


@dataclass(frozen=True)
class TrainOptions:
    """Train a diffusion model. Without arguments: on 1,797 handwritten digits that come with the package.

    The same command again continues an unfinished run from its newest checkpoint.
    """

    output_dir: Path | None = None
    """Folder of the run; by default runs/ and the name of the data."""
    data: Path | None = None
    """A folder of images (flat, or one sub-folder per class), a zip of images, a .npz or a .npy file; by default the
    packaged digits."""
    data_key: str | None = None
    """Which array of an npz file holds the images."""
    resolution: int | None = None
    """Resize the shorter side of every image to this and cut out the centre square."""
    skip_bad_images: bool = False
    """Leave unreadable images out instead of stopping."""

    train_batch_size: int = 128
    """Images per step and accumulation part."""
    max_train_steps: int = 800
    """Optimizer steps."""
    gradient_accumulation_steps: int = 1
    """Batches whose gradients are averaged for one optimizer step."""
    learning_rate: float = 2e-3
    """Learning rate of AdamW (no weight decay)."""
    lr_warmup_steps: int = 50
    """Steps over which the learning rate rises linearly."""
    max_grad_norm: float = 1.0
    """Clip the norm of the gradient to this; 0 turns it off."""
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    """Number format of the network's arithmetic."""
    use_ema: bool = True
    """Average the weights; samples then come from the average."""
    ema_decay: float = 0.995
    """Decay of the average per step, lower in the first steps."""
    seed: int = 0
    """Seed of everything: the same seed gives the same losses."""
    device: str = "auto"
    """cpu, cuda, cuda:1, ...; auto takes a GPU where there is one."""
    num_threads: int | None = None
    """CPU threads of the arithmetic."""

    checkpointing_steps: int = 500
    """Steps between checkpoints."""
    checkpoints_total_limit: int = 2
    """How many checkpoints to keep, the newest ones; 0 keeps all."""
    log_every: int = 10
    """Steps between writes to metrics.jsonl; every step has its line."""

    forward: Literal["vp", "flow", "kl"] = "vp"
    """Forward process: vp (DDPM), flow (flow matching), kl (KL diffusion, on the noise levels of vp)."""
    noise_schedule: NoiseSchedule = "linear"
    """Noise levels of vp and kl: those of 1000 time steps, or on continuous time."""
    prediction_type: Literal["auto", "epsilon", "sample", "v_prediction", "flow"] = "auto"
    """What the network predicts; auto is epsilon for vp and kl, flow for flow."""
    snr_gamma: float | None = None
    """Weight the loss at each time by min-SNR-gamma (the paper's choice is 5); by default no weight."""
    kl_terms: int = 4
    """Terms of the noise's expansion under --forward kl; 1 is vp."""
    kl_basis: Literal["kl", "haar"] = "kl"
    """Functions of time that the noise is expanded in: sines, or Haar functions, of which few matter at any time."""
    kl_renormalise: bool = True
    """Scale the noise of the terms up to the level of vp; without it less is added, and sampling starts from less."""
    kl_mode: Literal["component", "schedule", "recombined", "path"] = "component"
    """Loss under --forward kl: each term as a noise of its own, their sum as one noise, the errors of the terms summed
    (biased), or one path per image at several times."""
    kl_path_times: int | None = None
    """Times of each path under --kl_mode path; by default 4."""
    kl_partial: int | None = None
    """Evaluate only this many of the terms, chosen at random for each image and weighted to make up for it."""
    kl_draws: Literal["iid", "antithetic", "orthogonal"] = "iid"
    """How the noises of one image go together under --kl_mode component: independent, in opposite pairs, at right
    angles."""
    kl_weights: Literal["coefficient", "uniform"] = "coefficient"
    """What each term counts under --kl_mode component: its share of the variance, or all alike."""
    kl_microbatch: int | None = None
    """The most network evaluations at once under --forward kl; less memory, the same gradient up to rounding."""
    coupling: Literal["none", "hungarian", "sinkhorn", "queue", "knn"] = "none"
    """Which noise each image gets: independent, the assignment with the least total distance, nearly that one in less
    memory (for huge batches), the same over several steps (for small batches), the nearest of k."""
    hungarian_pool: int | None = None
    """Noises to choose from under --coupling hungarian; by default one per image."""
    hungarian_project: int | None = None
    """Search in a space of at most this many dimensions under --coupling hungarian: cheaper, not exact."""
    hungarian_projection: Literal["pool", "random"] = "pool"
    """How --hungarian_project gets there: averages over windows of pixels, or a random projection."""
    sinkhorn_epsilon: float = 0.3
    """Temperature of the plan under --coupling sinkhorn, in standard deviations of the cost."""
    sinkhorn_iterations: int = 1
    """Iterations under --coupling sinkhorn; 0 is independent."""
    sinkhorn_output: Literal["permutation", "sampled"] = "permutation"
    """What --coupling sinkhorn makes of the plan: a permutation of the noises, or samples, which repeat some."""
    sinkhorn_project: int | None = None
    """Search in a space of at most this many dimensions (averages over windows of pixels) under --coupling sinkhorn."""
    queue_size: int = 64
    """Noises that wait between steps under --coupling queue; 0 is hungarian."""
    knn_k: int = 4
    """Candidates under --coupling knn; 1 is none."""
    knn_metric: Literal["l2", "dot"] = "l2"
    """What nearest means under --coupling knn."""
    coupling_start_step: int = 0
    """Optimizer steps of independent noise before the coupling begins."""
    coupling_ahead: bool = False
    """Pair the next batch while the network works on this one; the numbers are the same."""
    data_scale: float = 1.0
    """Factor on the data before noise is added, undone on samples."""
    curriculum: bool = False
    """Move the training times from uniform towards the curriculum's distribution: a Gaussian over the time steps, on
    continuous time over those of the same signal-to-noise ratio."""
    curriculum_weight: float = 1.0
    """Weight of the curriculum at the end of the run; 0 turns it off."""
    curriculum_importance: bool = False
    """Weight the loss so that its expected value is that of uniform times, under --curriculum."""
    momentum_decay: bool = False
    """Let the momentum decay to 0 over the run, the learning rate compensated."""
    momentum_decay_strength: float = 1.0
    """How far the momentum decays; 0 turns it off."""

    channels: tuple[int, ...] = ()
    """Channels of each level of the U-Net, as 32 64 64; by default fitted to the images' size."""
    layers_per_block: int = 1
    """Residual layers per level of the U-Net."""

    dry_run: bool = False
    """Print what would be done and write nothing."""

    def __post_init__(self) -> None:
        for name, low in (
            ("train_batch_size", 1),
            ("max_train_steps", 1),
            ("gradient_accumulation_steps", 1),
            ("lr_warmup_steps", 0),
            ("checkpointing_steps", 1),
            ("checkpoints_total_limit", 0),
            ("log_every", 1),
            ("kl_terms", 1),
            ("knn_k", 1),
            ("queue_size", 0),
            ("sinkhorn_iterations", 0),
            ("coupling_start_step", 0),
            ("layers_per_block", 1),
        ):
            value = getattr(self, name)
            if value < low:
                raise UsageError(f"--{name} must be at least {low}, got {value}")
        for name in (
            *("resolution", "num_threads", "hungarian_project", "sinkhorn_project"),
            *("kl_path_times", "kl_partial", "kl_microbatch"),
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"--{name} must be at least 1, got {value}")
        if self.hungarian_pool is not None and self.hungarian_pool < self.train_batch_size:
            raise UsageError(
                f"--hungarian_pool must be at least --train_batch_size {self.train_batch_size}, "
                f"got {self.hungarian_pool}"
            )
        for name in ("learning_rate", "data_scale", "sinkhorn_epsilon", "snr_gamma"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise UsageError(f"--{name} must be a positive number, got {value}")
        if not (math.isfinite(self.max_grad_norm) and self.max_grad_norm >= 0):
            raise UsageError(f"--max_grad_norm must be 0 or a positive number, got {self.max_grad_norm}")
        if not 0 <= self.ema_decay < 1:
            raise UsageError(f"--ema_decay must be in [0, 1), got {self.ema_decay}")
        for name in ("curriculum_weight", "momentum_decay_strength"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"--{name} must be in [0, 1], got {getattr(self, name)}")
        if not 0 <= self.seed < 2**63:
            raise UsageError(f"--seed must be in 0 .. 2**63 - 1, got {self.seed}")
        if (self.forward == "flow") != (self.prediction_type == "flow") and self.prediction_type != "auto":
            fits = "flow" if self.forward == "flow" else "epsilon, sample or v_prediction"
            raise UsageError(f"--forward {self.forward} goes with --prediction_type {fits}, got {self.prediction_type}")
        if self.forward == "flow" and self.noise_schedule != "linear":
            raise UsageError(f"--noise_schedule is for --forward vp and kl, got {self.noise_schedule} with flow")
        if self.curriculum_importance and not self.curriculum:
            raise UsageError("--curriculum_importance needs --curriculum")
        self._check_kl()
        for channels in self.channels:
            if channels < 8 or channels % 8:
                raise UsageError(f"--channels must be multiples of 8, got {channels}")

    def _check_kl(self) -> None:
        """The flags of KL diffusion go together."""
        plain = {field.name: field.default for field in dataclasses.fields(self)}
        given = [name for name in _KL if getattr(self, name) != plain[name]]
        if given and self.forward != "kl":
            raise UsageError(f"--{given[0]} needs --forward kl, got --forward {self.forward}")
        if self.kl_path_times is not None and self.kl_mode != "path":
            raise UsageError(f"--kl_path_times needs --kl_mode path, got --kl_mode {self.kl_mode}")
        for name in ("kl_partial", "kl_draws", "kl_weights"):
            if name in given and self.kl_mode != "component":
                raise UsageError(f"--{name} needs --kl_mode component, got --kl_mode {self.kl_mode}")
        if self.kl_partial is not None:
            if self.kl_partial > self.kl_terms:
                raise UsageError(f"--kl_partial must be at most --kl_terms {self.kl_terms}, got {self.kl_partial}")
            if self.kl_draws != "iid":
                raise UsageError(f"--kl_partial goes with --kl_draws iid, got --kl_draws {self.kl_draws}")
        if self.kl_draws != "iid" and self.coupling != "none":
            raise UsageError(
                f"--kl_draws {self.kl_draws} draws noises together, it does not go with --coupling {self.coupling}"
            )
        if self.kl_microbatch is not None and self.kl_microbatch < self.evaluations_per_image:
            raise UsageError(
                f"--kl_microbatch must be at least {self.evaluations_per_image}, the network evaluations of one image, "
                f"got {self.kl_microbatch}"
            )

    @property
    def kl_objective(self) -> KLObjective:
        """The loss of KL diffusion; terms are chosen with the probabilities that are their weights."""
        return KLObjective(
            mode=self.kl_mode,
            partial=self.kl_partial,
            partial_probabilities="coefficient" if self.kl_partial is None else self.kl_weights,
            draws=self.kl_draws,
            weights=self.kl_weights,
        )

    @property
    def path_times(self) -> int:
        """Times of each path under --kl_mode path."""
        return _PATH_TIMES if self.kl_path_times is None else self.kl_path_times

    @property
    def images_per_step(self) -> int:
        """Images of one optimizer step."""
        return self.train_batch_size * self.gradient_accumulation_steps

    @property
    def evaluations_per_image(self) -> int:
        """Network evaluations for each image of a batch."""
        return self.kl_objective.evaluations(self.kl_terms, self.path_times) if self.forward == "kl" else 1

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self.output_dir or Path("runs") / ("digits" if self.data is None else self.data.stem or "data")

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; ``from_dict`` reads it."""
        values = dataclasses.asdict(self)
        values.pop("dry_run")
        return {
            key: str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
            for key, value in values.items()
        }

    @classmethod
    def from_dict(cls, d: dict[str, Any]) -> TrainOptions:
        """The options that ``to_dict`` wrote.

        Raises:
            ValueError: unknown fields, or values out of range.
            TypeError: values of the wrong type.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        if set(d) - known:
            raise ValueError(f"unknown options {sorted(set(d) - known)}")
        values = dict(d)
        for key in ("output_dir", "data"):
            if values.get(key) is not None:
                values[key] = Path(values[key])
        values["channels"] = tuple(values.get("channels", ()))
        return cls(**values)

    def differences(self, other: TrainOptions) -> list[str]:
        """How these options differ from a run's own in what changes its numbers, as ``--flag new (the run: old)``.

        A longer run is the continuation of a shorter one, unless something is spread over the number of steps.
        """
        free = _FREE | (frozenset() if self.curriculum or self.momentum_decay else frozenset({"max_train_steps"}))
        mine, theirs = self.to_dict(), other.to_dict()
        return [
            f"--{key} {_spelled(mine[key])} (the run: {_spelled(theirs[key])})"
            for key in mine
            if key not in free and mine[key] != theirs[key]
        ]


def _spelled(value: Any) -> str:
    return " ".join(map(str, value)) or "()" if isinstance(value, list) else str(value)
