"""Every operator in plain NumPy, SciPy and torch: the specification that kernels are compared with.

Nothing here calls the extension. Noise is the same integer stream in float64 mathematics, so it agrees with the kernels
to a few float32 ulps; what is random in law only (``knn_noise``) uses the same stream too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_LANES, _GROUP = 16, 64
_CANDIDATE = 1 << 24
_MASK = np.uint64(0xFFFFFFFF)


def philox4x32_10(counter: NDArray[np.uint32], key: tuple[int, int]) -> NDArray[np.uint32]:
    """Philox 4x32-10 (Salmon et al. 2011) on counters ``[..., 4]``."""
    c0, c1, c2, c3 = (counter[..., i].astype(np.uint64) for i in range(4))
    k0, k1 = key
    for _ in range(10):
        p0, p1 = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)
        c0, c1, c2, c3 = (
            (p1 >> np.uint64(32)) ^ c1 ^ np.uint64(k0),
            p1 & _MASK,
            (p0 >> np.uint64(32)) ^ c3 ^ np.uint64(k1),
            p0 & _MASK,
        )
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3], -1).astype(np.uint32)


def _words(position: NDArray[np.int64], sample: int, seed: int, step: int, stream: int) -> NDArray[np.uint32]:
    counter = np.zeros((*position.shape, 4), np.uint32)
    counter[..., 0] = position
    counter[..., 1:] = (sample, step, stream)
    return philox4x32_10(counter, (seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF))


def _box_muller(
    radius: NDArray[np.uint32], angle: NDArray[np.uint32]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Radius words round to float32 first, as the kernels convert them."""
    u = (radius.astype(np.float32) + np.float32(0.5)).astype(np.float64) / 2.0**32
    r = np.sqrt(-2.0 * np.log(u))
    turn = 2.0 * math.pi * angle.astype(np.float64) / 2.0**32
    return r * np.cos(turn), r * np.sin(turn)


def _normals(elements: int, sample: int, seed: int, step: int, term: int = 0) -> NDArray[np.float64]:
    groups = -(-elements // _GROUP)
    words = _words(np.arange(groups * _LANES), sample, seed, step, term).reshape(groups, _LANES, 4)
    z0, z1 = _box_muller(words[..., 0], words[..., 1])
    z2, z3 = _box_muller(words[..., 2], words[..., 3])
    return np.stack([z0, z1, z2, z3], 1).reshape(-1)[:elements]


def _noise(like: Tensor, seed: int, step: int, first_sample: int, term: int = 0) -> Tensor:
    """float64 noise of like's shape."""
    elements = math.prod(like.shape[1:])
    rows = [_normals(elements, first_sample + j, seed, step, term) for j in range(like.shape[0])]
    flat = np.stack(rows) if rows else np.zeros((0, elements))
    return torch.from_numpy(flat).reshape(like.shape).to(like.device)


def gaussian_noise(like: Tensor, seed: int, step: int = 0, first_sample: int = 0) -> Tensor:
    return _noise(like, seed, step, first_sample).float().to(like.dtype)


def hungarian(cost: Tensor, maximize: bool = False) -> Tensor:
    from scipy.optimize import linear_sum_assignment

    rows, columns = cost.shape[-2:]
    items = math.prod(cost.shape[:-2])
    matrices = cost.detach().double().cpu().reshape(items, rows, columns).numpy()
    out = np.full((len(matrices), rows), -1, np.int64)
    for item, matrix in enumerate(matrices):
        row, column = linear_sum_assignment(matrix, maximize)
        out[item, row] = column
    return torch.from_numpy(out).reshape(cost.shape[:-1]).to(cost.device)


def _chi_square(j: int, sample: int, seed: int, step: int, dof: int) -> tuple[float, float]:
    """Candidate j: (a, s) by Marsaglia and Tsang 2000, on the kernels' stream."""

    def draw(attempt: int) -> tuple[float, float, float, float]:
        words = _words(np.array([j]), sample, seed, step, _CANDIDATE + attempt)[0]
        z0, z1 = _box_muller(words[:1], words[1:2])
        return float(z0[0]), float(z1[0]), (int(words[2]) + 0.5) / 2**32, (int(words[3]) + 0.5) / 2**32

    a, x, u, boost = draw(0)
    if dof <= 0:
        return a, 0.0
    shape = dof / 2
    d = (shape + 1 if shape < 1 else shape) - 1 / 3
    attempt = 0
    while True:
        v = (1 + x / math.sqrt(9 * d)) ** 3
        if v > 0 and math.log(u) < 0.5 * x * x + d - d * v + d * math.log(v):
            break
        attempt += 1
        x, _, u, _ = draw(attempt)
    return a, 2 * d * v * (boost ** (1 / shape) if shape < 1 else 1.0)


def knn_noise(x: Tensor, k: int, metric: str = "l2", seed: int = 0, step: int = 0, first_sample: int = 0) -> Tensor:
    g = _noise(x, seed, step, first_sample)
    if k == 1 or x.numel() == 0:
        return g.float().to(x.dtype)
    out = torch.empty_like(g)
    elements = math.prod(x.shape[1:])
    for row in range(x.shape[0]):
        data, noise = x[row].detach().double(), g[row]
        norm = float(data.norm())
        pairs = [_chi_square(j, first_sample + row, seed, step, elements - 1) for j in range(k)]
        if metric == "l2":
            a, s = min(pairs, key=lambda pair: (norm - pair[0]) ** 2 + pair[1])
        else:
            a, s = max(pairs, key=lambda pair: pair[0])
        if norm == 0:
            length = math.sqrt(a * a + s) / float(noise.norm()) if metric == "l2" else 1.0
            out[row] = noise * length
            continue
        unit = data / norm
        across = noise - (noise * unit).sum() * unit
        if metric == "l2":
            across = across * (math.sqrt(s) / float(across.norm())) if elements > 1 else across * 0
        out[row] = a * unit + across
    return out.to(x.dtype)


def knn_select(x: Tensor, candidates: Tensor, metric: str = "l2") -> Tensor:
    data = x.detach().double().flatten(1) if x.dim() > 1 else x.detach().double()[:, None]
    shared = candidates.dim() == x.dim()
    pool = candidates.detach().double()
    pool = pool.reshape(*pool.shape[: 1 if shared else 2], -1)
    pool = pool.expand(len(data), *pool.shape) if shared else pool
    if metric == "l2":
        return ((data[:, None] - pool) ** 2).sum(-1).argmin(1)
    return (data[:, None] * pool).sum(-1).argmax(1)


def _column(table: Tensor, like: Tensor) -> Tensor:
    return table.double().reshape(-1, *([1] * (like.dim() - 1)))


def kl_sample(
    x0: Tensor, alpha: Tensor, coeff: Tensor, seed: int, step: int = 0, first_sample: int = 0
) -> tuple[Tensor, Tensor]:
    c = coeff.double()
    sigma = c.norm(dim=1)
    unit = c / sigma[:, None].clamp_min(torch.finfo(torch.float64).tiny)
    unit[sigma == 0, 0] = 1.0
    noise = torch.zeros_like(x0, dtype=torch.float64)
    for k in range(c.shape[1]):
        noise += _column(unit[:, k], x0) * _noise(x0, seed, step, first_sample, k)
    noise = noise.to(x0.dtype)  # the noise as it is returned, so that x_t and target agree in half precision too
    x_t = _column(alpha, x0) * x0.double() + _column(sigma, x0) * noise.double()
    return x_t.to(x0.dtype), noise


def kl_path(x0: Tensor, alpha: Tensor, coeff: Tensor, seed: int, step: int = 0, first_sample: int = 0) -> Tensor:
    z = [_noise(x0, seed, step, first_sample, k) for k in range(coeff.shape[1])]
    times = []
    for scale, row in zip(alpha.double().tolist(), coeff.double().tolist(), strict=True):
        times.append(scale * x0.double() + sum(c * term for c, term in zip(row, z, strict=True)))
    shape = (x0.shape[0], len(times), *x0.shape[1:])
    return torch.stack(times, 1).to(x0.dtype) if times else x0.new_empty(shape)


def kl_components(
    x0: Tensor, alpha: Tensor, sigma: Tensor, num_terms: int, seed: int, step: int = 0, first_sample: int = 0
) -> tuple[Tensor, Tensor]:
    noise = torch.stack([_noise(x0, seed, step, first_sample, k) for k in range(num_terms)], 1)
    noise = noise.to(x0.dtype)
    x_t = (_column(alpha, x0) * x0.double())[:, None] + _column(sigma, noise) * noise.double()
    return x_t.to(x0.dtype), noise


def solver_step(x: Tensor, outputs: Sequence[Tensor], a: float, b: Sequence[float]) -> Tensor:
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    result = a * x.to(wide)
    for coefficient, output in zip(b, outputs, strict=True):
        result = result + coefficient * output.to(wide)
    return result.to(x.dtype)


def solver_gram(directions: Sequence[Tensor], residual: Tensor) -> tuple[Tensor, Tensor]:
    flat = (
        torch.stack([d.double().flatten() for d in directions])
        if directions
        else residual.new_zeros((0, residual.numel()), dtype=torch.float64)
    )
    return flat @ flat.T, flat @ residual.double().flatten()
