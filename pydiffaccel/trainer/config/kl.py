"""Flags of KL diffusion."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pydiffaccel._cli import UsageError
from pydiffaccel.trainer.config.base import OptionGroup

if TYPE_CHECKING:
    from pydiffaccel.losses import KLObjective

__all__ = ["KLOptions"]

_PATH_TIMES = 4


@dataclass(frozen=True)
class KLOptions(OptionGroup):
    """What --forward kl trains on."""

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

    def check(self) -> None:
        self._at_least(kl_terms=1, kl_path_times=1, kl_partial=1, kl_microbatch=1)

    def _check_kl(self, forward: str, coupling: str) -> None:
        """The flags of KL diffusion go together, and with those of other groups."""
        given = [
            field.name
            for field in dataclasses.fields(KLOptions)
            # --kl_terms waits for --forward kl.
            if field.name != "kl_terms" and getattr(self, field.name) != field.default
        ]
        if given and forward != "kl":
            raise UsageError(f"--{given[0]} needs --forward kl, got --forward {forward}")
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
        if self.kl_draws != "iid" and coupling != "none":
            raise UsageError(
                f"--kl_draws {self.kl_draws} draws noises together, it does not go with --coupling {coupling}"
            )
        if self.kl_microbatch is not None and self.kl_microbatch < self.kl_evaluations:
            raise UsageError(
                f"--kl_microbatch must be at least {self.kl_evaluations}, the network evaluations of one image, "
                f"got {self.kl_microbatch}"
            )

    @property
    def kl_objective(self) -> KLObjective:
        """The loss of KL diffusion; terms are chosen with the probabilities that are their weights."""
        from pydiffaccel.losses import KLObjective

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
    def kl_evaluations(self) -> int:
        """Network evaluations for each image under --forward kl."""
        return self.kl_objective.evaluations(self.kl_terms, self.path_times)
