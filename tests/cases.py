"""Input cases of every operator: one case drives correctness, opcheck, layouts, compilation and timing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

FLOATING = (torch.float32, torch.float64, torch.float16, torch.bfloat16)

Arguments = tuple[Any, ...]


@dataclass(frozen=True)
class Case:
    """Arguments of ``pydiffaccel.ops.<op>`` for a device and a dtype of the data."""

    op: str
    name: str
    make: Callable[[torch.device, torch.dtype], Arguments]

    def __str__(self) -> str:
        return f"{self.op}-{self.name}"

    def arguments(self, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Arguments:
        return self.make(torch.device(device), dtype)

    def native(self, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Arguments:
        """The same for ``torch.ops.diffaccel.<op>``, whose schema has ints for names."""
        codes = {"l2": 0, "dot": 1, "iid": 0, "antithetic": 1}
        return tuple(codes[a] if isinstance(a, str) else a for a in self.arguments(device, dtype))


def data(*shape: int, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(device=device, dtype=dtype)


def table(*shape: int, device: torch.device | str = "cpu", seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (0.1 + 0.8 * torch.rand(*shape, generator=generator, dtype=torch.float64)).to(device)


def sparse(*shape: int, device: torch.device | str = "cpu") -> Tensor:
    """A table that is mostly zero: entry n is kept where n % 5 is 1."""
    values = table(*shape, device=device) - 0.3
    return values * (torch.arange(values.numel(), device=device).reshape(shape) % 5 == 1)


SHAPES = {
    "image": (5, 3, 8, 8),
    "odd": (3, 67),
    "vector": (4, 1),
    "one": (1, 130),
    "empty": (0, 3, 4),
    "hollow": (3, 0),
}

CASES: list[Case] = []


def _add(op: str, name: str, make: Callable[[torch.device, torch.dtype], Arguments]) -> None:
    CASES.append(Case(op, name, make))


for _name, _shape in SHAPES.items():
    _add("gaussian_noise", _name, lambda d, t, s=_shape: (data(*s, device=d, dtype=t), 2**63 - 5, 7, 2))
    for _metric in ("l2", "dot"):
        _add(
            "knn_noise",
            f"{_name}-{_metric}",
            lambda d, t, s=_shape, m=_metric: (data(*s, device=d, dtype=t), 5, m, 11, 3, 1),
        )
    _add(
        "kl_sample",
        _name,
        lambda d, t, s=_shape: (
            data(*s, device=d, dtype=t),
            table(s[0], device=d),
            table(s[0], 4, device=d) - 0.3,
            1,
            2,
            3,
        ),
    )
    _add(
        "kl_sample",
        f"{_name}-times",
        lambda d, t, s=_shape: (
            data(*s, device=d, dtype=t),
            table(s[0], 3, device=d),
            table(s[0], 3, 4, device=d) - 0.3,
            1,
            2,
            3,
        ),
    )
    _add(
        "kl_path",
        _name,
        lambda d, t, s=_shape: (
            data(*s, device=d, dtype=t),
            table(19, device=d),
            table(19, 3, device=d) - 0.3,
            1,
            2,
            3,
        ),
    )
    _add(
        "kl_components",
        _name,
        lambda d, t, s=_shape: (
            data(*s, device=d, dtype=t),
            table(s[0], device=d),
            table(s[0], device=d, seed=2),
            3,
            1,
            2,
            3,
        ),
    )
    _add(
        "solver_step",
        _name,
        lambda d, t, s=_shape: (
            data(*s, device=d, dtype=t),
            [data(*s, device=d, dtype=t, seed=n) for n in (1, 2, 3)],
            0.75,
            [0.3, -1.5, 0.125],
        ),
    )
    _add(
        "solver_gram",
        _name,
        lambda d, t, s=_shape: (
            [data(*s, device=d, dtype=t, seed=n) for n in (1, 2)],
            data(*s, device=d, dtype=t),
        ),
    )
    if _shape[0]:
        for _metric in ("l2", "dot"):
            _add(
                "knn_select",
                f"{_name}-own-{_metric}",
                lambda d, t, s=_shape, m=_metric: (
                    data(*s, device=d, dtype=t),
                    data(s[0], 6, *s[1:], device=d, dtype=t, seed=1),
                    m,
                ),
            )
_add(
    "knn_select", "shared", lambda d, t: (data(5, 3, 70, device=d, dtype=t), data(9, 3, 70, device=d, dtype=t, seed=1))
)
_add("knn_select", "empty", lambda d, t: (data(0, 3, device=d, dtype=t), data(9, 3, device=d, dtype=t, seed=1)))
for _name, _shape in {"image": (5, 3, 8, 8), "vector": (4, 1), "plane": (4, 2), "large": (2, 3, 33, 33)}.items():
    for _metric in ("l2", "dot"):
        _add(
            "knn_noise",
            f"{_name}-{_metric}-order",
            lambda d, t, s=_shape, m=_metric: (data(*s, device=d, dtype=t), 10**6, m, 12, 3, 1),
        )
_add("knn_noise", "zero-data-order", lambda d, t: (torch.zeros(3, 40, device=d, dtype=t), 1000, "l2", 3))
_add("knn_noise", "k1", lambda d, t: (data(4, 100, device=d, dtype=t), 1, "l2", 3))
_add("knn_noise", "zero-data", lambda d, t: (torch.zeros(3, 40, device=d, dtype=t), 4, "l2", 3))
_add(
    "kl_sample", "one-term", lambda d, t: (data(4, 70, device=d, dtype=t), table(4, device=d), table(4, 1, device=d), 3)
)
_add(
    "kl_sample",
    "clean-end",
    lambda d, t: (data(2, 70, device=d, dtype=t), torch.ones(2, device=d), torch.zeros(2, 3, device=d), 3),
)
_add(
    "kl_sample",
    "sparse",
    lambda d, t: (data(4, 70, device=d, dtype=t), table(4, device=d), sparse(4, 33, device=d), 3),
)
_add(
    "kl_sample",  # more times than one block of the kernels holds, clean ends among them
    "sparse-times",
    lambda d, t: (data(2, 70, device=d, dtype=t), table(2, 67, device=d), sparse(2, 67, 4, device=d), 3),
)
_add(
    "kl_sample",
    "no-times",
    lambda d, t: (data(2, 9, device=d, dtype=t), table(2, 0, device=d), table(2, 0, 4, device=d), 3),
)
_add(
    "kl_path",
    "sparse",
    lambda d, t: (data(2, 70, device=d, dtype=t), table(67, device=d), sparse(67, 4, device=d), 3),
)
for _terms in (1, 4, 7):
    _add(
        "kl_components",
        f"antithetic-{_terms}",
        lambda d, t, m=_terms: (
            data(3, 70, device=d, dtype=t),
            table(3, device=d),
            table(3, device=d, seed=2),
            m,
            1,
            2,
            3,
            "antithetic",
        ),
    )
_add("solver_step", "no-outputs", lambda d, t: (data(4, 9, device=d, dtype=t), [], 0.5, []))
for _count in (1, 2, 4, 5, 8, 9, 16):  # up to four are read in one loop
    _add(
        "solver_step",
        f"{_count}-outputs",
        lambda d, t, n=_count: (
            data(3, 700, device=d, dtype=t),
            [data(3, 700, device=d, dtype=t, seed=j) for j in range(n)],
            0.75,
            [0.5 / (j + 1) for j in range(n)],
        ),
    )
_add("solver_gram", "no-directions", lambda d, t: ([], data(4, 9, device=d, dtype=t)))
_add(
    "solver_gram",
    "large",
    lambda d, t: (
        [data(7, 3, 33, 33, device=d, dtype=t, seed=n) for n in (1, 2, 3)],
        data(7, 3, 33, 33, device=d, dtype=t),
    ),
)
for _name, _shape in {
    "square": (16, 16),
    "wide": (5, 33),
    "tall": (33, 5),
    "batch": (3, 2, 17, 17),
    "one": (1, 1),
    "no-rows": (0, 5),
    "no-columns": (5, 0),
    "no-items": (0, 4, 4),
}.items():
    for _op in ("hungarian", "hungarian_with_status"):
        _add(_op, _name, lambda d, t, s=_shape: (data(*s, device=d, dtype=t),))
# Beyond the sizes that one warp takes on a GPU; "grid" is what a whole GPU takes.
for _name, _shape in {
    "block": (2, 70, 70),
    "block-wide": (40, 90),
    "block-tall": (90, 40),
    "grid": (1100, 1100),
}.items():
    _add("hungarian", _name, lambda d, t, s=_shape: (data(*s, device=d, dtype=t),))
_add("hungarian", "maximize", lambda d, t: (data(12, 12, device=d, dtype=t), True))
_add("hungarian", "block-maximize", lambda d, t: (data(120, 120, device=d, dtype=t), True))
_add("hungarian", "ties", lambda d, t: (data(20, 20, device=d, dtype=t).round(),))
_add("hungarian", "block-ties", lambda d, t: (data(130, 130, device=d, dtype=t).round(),))
_add("hungarian", "constant", lambda d, t: (torch.full((9, 9), 2.5, device=d, dtype=t),))


def _mixed(rows: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Four problems: solvable, infeasible, holding NaN, holding -inf."""
    cost = data(4, rows, rows, device=device, dtype=dtype)
    cost[1, :, 1:] = torch.inf
    cost[2, rows - 1, 0] = torch.nan
    cost[3, 0, rows - 1] = -torch.inf
    return cost


for _rows in (6, 64):
    _add("hungarian_with_status", f"mixed-{_rows}", lambda d, t, n=_rows: (_mixed(n, d, t),))
