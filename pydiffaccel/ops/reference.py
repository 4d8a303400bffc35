"""Every operator in plain NumPy, SciPy and torch: the specification that kernels are compared with.

Nothing here calls the extension. Noise is the same integer stream in float64 mathematics, so it agrees with the kernels
to a few float32 ulps; what is random in law only (``knn_noise``) uses the same stream too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_LANES, _GROUP = 16, 64
_CANDIDATE, _ORDER = 1 << 24, 2 << 24
_DIRECT_K, _LAST_LEVEL, _LARGEST_NORM = 32, 0.95, 1e150  # as in csrc/core/knn_noise.h and knn_order.h
_STANDARD = NormalDist()
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


def hungarian_with_status(cost: Tensor, maximize: bool = False) -> tuple[Tensor, Tensor]:
    """Status of each problem: 0 solved, 1 infeasible, 2 NaN or the wrong infinity."""
    items, rows = cost.shape[:-2], cost.shape[-2]
    matrices = cost.detach().reshape(math.prod(items), rows, cost.shape[-1])
    columns = torch.full((len(matrices), rows), -1)
    status = torch.zeros(len(matrices), dtype=torch.int32)
    for item, matrix in enumerate(matrices):
        try:
            columns[item] = hungarian(matrix, maximize).cpu()
        except ValueError as error:
            status[item] = 1 if "infeasible" in str(error) else 2
    return columns.reshape(cost.shape[:-1]).to(cost.device), status.reshape(items).to(cost.device)


def _candidate(j: int, sample: int, seed: int, step: int, dof: int) -> tuple[float, float]:
    """Candidate j: (a, s), a normal and s ~ chi^2(dof) by Marsaglia and Tsang 2000, on the kernels' stream."""

    def draw(attempt: int) -> tuple[float, float, float]:
        words = _words(np.array([j]), sample, seed, step, _CANDIDATE + attempt)[0]
        z0, z1 = _box_muller(words[:1], words[1:2])
        return float(z0[0]), float(z1[0]), ((int(words[2]) >> 1) + 0.5) / 2**31

    a, x, u = draw(0)
    if dof < 2:
        return a, x * x * dof
    d = dof / 2 - 1 / 3
    attempt = 0
    while True:
        v = (1 + x / math.sqrt(9 * d)) ** 3
        if v > 0 and math.log(u) < 0.5 * x * x + d - d * v + d * math.log(v):
            return a, 2 * d * v
        attempt += 1
        _, x, u = draw(attempt)


def _uniforms(draw: int, sample: int, seed: int, step: int) -> tuple[float, float]:
    words = [int(w) for w in _words(np.array([draw]), sample, seed, step, _ORDER)[0]]
    first, second = words[0] << 32 | words[1], words[2] << 32 | words[3]
    return ((first >> 12) + 0.5) / 2**52, ((second >> 12) + 0.5) / 2**52


def _largest_normal(sample: int, seed: int, step: int, k: int) -> float:
    """The largest of k normals: the quantile at U^(1/k)."""
    share = math.log(_uniforms(0, sample, seed, step)[0]) / k
    if share < -math.log(2):
        return _STANDARD.inv_cdf(math.exp(share))
    return -_STANDARD.inv_cdf(-math.expm1(share))


class _Envelope:
    """The bound on the law of (distance, direction) that ``csrc/core/knn_order.h`` derives."""

    def __init__(self, k: int, elements: int, norm: float) -> None:
        m, self.norm, self.m = elements - 1, norm, elements - 1
        self.depth = -_STANDARD.inv_cdf(1 / (k + 1))
        if m == 0:
            self.mu, self.mu_minus_x, self.small = norm, 0.0, norm < self.depth + 1
            self.mass = 2 * _STANDARD.pdf(norm) if self.small else 2.0
            return
        half = elements / 2
        stirling = math.lgamma(half) - ((half - 0.5) * math.log(half) - half + 0.5 * math.log(2 * math.pi))
        bound = 0.5 * math.log(2) + 0.5 + 0.5 * m * math.log1p(-1 / elements) - stirling
        e = self.depth / math.sqrt(norm * norm + 0.5 * m)
        for _ in range(40):
            v = 1 + e
            mu, w = math.sqrt(norm * norm + m * v), e / v
            z = mu * w
            root = math.sqrt(z * z + 8 / math.pi)
            level = math.log(k) + bound + 0.5 * m * (w - math.log1p(e)) - 0.5 * (norm * w) ** 2
            level += 0.5 * math.log(2 / math.pi) - math.log(z + root)
            if abs(level) < 0.25:
                break
            slope = w * w * (0.5 * m + norm * norm / v) + (z / v + 0.5 * m * e * w / mu) / root
            e *= math.exp(min(40.0, max(-3.0, level / slope)))
        v = 1 + e
        self.mu = math.sqrt(norm * norm + m * v)
        self.mu_minus_x, self.small = m * v / (self.mu + norm), self.mu < v
        if self.small:
            self.mass = math.exp(bound - 0.5 * (m * (1 + math.log(v)) + norm * norm) - 0.5 * math.log(2 * math.pi))
        else:
            self.mass = math.exp(bound + 0.5 * m * (e - math.log1p(e)))

    def distance(self, level: float) -> tuple[float, float]:
        """Where the bound's mass is ``level``: the distance and mu minus it."""
        share = level / self.mass
        if self.small:
            rho = math.log1p(self.mu * share) / self.mu if self.mu > 0 else share
            return rho, self.mu - rho
        z = -_STANDARD.inv_cdf(share)
        return self.mu - z, z

    def point(self, level: float, uniform: tuple[float, float]) -> tuple[tuple[float, float], float]:
        """(a, s) there, in the direction that a uniform one is mapped to, and the chance to keep it."""
        rho, z = self.distance(level)
        if rho <= 0:
            return (0.0, 0.0), 0.0
        along, across = uniform
        r = math.hypot(along, math.sqrt(across))
        larger, smaller = 1 + abs(along) / r, across / (r * (r + abs(along)))
        minus, plus = (smaller, larger) if along > 0 else (larger, smaller)
        if self.m > 0:
            gap, x0 = self.mu_minus_x / self.mu, self.norm / self.mu
            scale = 1 / (gap + x0 * plus)
            minus, plus = minus * gap * scale, plus * (1 + x0) * scale
            y = rho * (self.mu_minus_x + self.norm * minus) / self.m - 1
            chance = self.m * (math.log1p(y) - y)
        else:
            chance = -self.norm * rho * minus
        if self.small:
            chance -= 0.5 * rho * rho
        a = (self.norm - rho if self.small else z - self.mu_minus_x) + rho * minus
        return (a, rho * rho * minus * plus), math.exp(chance)


def _nearest_ordered(sample: int, seed: int, step: int, k: int, elements: int, norm: float) -> tuple[float, float]:
    """(a, s) of the nearest of k candidates by thinning (``csrc/core/knn_order.h``)."""
    envelope = _Envelope(k, elements, norm)
    reached, draw = 0.0, 0

    def candidate(j: int) -> tuple[float, float]:
        return _candidate(j, sample, seed, step, elements - 1)

    while True:
        first, chance = _uniforms(draw, sample, seed, step)
        reached -= math.log(first)
        level = -math.expm1(-reached / k)
        if level > _LAST_LEVEL:
            break
        pair, kept = envelope.point(level, candidate(draw))
        draw += 1
        if chance < kept * (1 - level):
            return pair
        while chance < kept:
            first, other_chance = _uniforms(draw, sample, seed, step)
            _, other = envelope.point(level * first, candidate(draw))
            draw += 1
            if other_chance >= other:
                break
            draw += 1
            if _uniforms(draw - 1, sample, seed, step)[0] < 1 - level:
                return pair
    rho, z = envelope.distance(_LAST_LEVEL)
    farther = (rho - norm if envelope.small else envelope.mu_minus_x - z) * (rho + norm) if rho > 0 else -math.inf
    far: list[tuple[float, float]] = []
    while len(far) < k:
        pair = candidate(draw)
        draw += 1
        if pair[0] * (pair[0] - 2 * norm) + pair[1] > farther:
            far.append(pair)
    return min(far, key=lambda pair: pair[0] * (pair[0] - 2 * norm) + pair[1])


def _chosen(sample: int, seed: int, step: int, k: int, metric: str, elements: int, norm: float) -> tuple[float, float]:
    """The best candidate's component along x and its squared length across."""
    if metric == "dot":
        return _largest_normal(sample, seed, step, k), 0.0
    if k > _DIRECT_K:
        return _nearest_ordered(sample, seed, step, k, elements, norm)
    pairs = [_candidate(j, sample, seed, step, elements - 1) for j in range(k)]
    return min(pairs, key=lambda pair: pair[0] * (pair[0] - 2 * norm) + pair[1])


def knn_noise(x: Tensor, k: int, metric: str = "l2", seed: int = 0, step: int = 0, first_sample: int = 0) -> Tensor:
    g = _noise(x, seed, step, first_sample)
    if k == 1 or x.numel() == 0:
        return g.float().to(x.dtype)
    out = torch.empty_like(g)
    elements = math.prod(x.shape[1:])
    for row in range(x.shape[0]):
        data, noise = x[row].detach().double(), g[row]
        norm = float(data.norm())
        if not norm < _LARGEST_NORM:
            out[row] = math.nan
            continue
        a, s = _chosen(first_sample + row, seed, step, k, metric, elements, norm)
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
    if alpha.dim() == 2:
        shape = (*alpha.shape, *x0.shape[1:])
        times = [kl_sample(x0, alpha[:, s], coeff[:, s], seed, step, first_sample) for s in range(alpha.shape[1])]
        if not times:
            return x0.new_empty(shape), x0.new_empty(shape)
        return torch.stack([x_t for x_t, _ in times], 1), torch.stack([noise for _, noise in times], 1)
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
    x0: Tensor,
    alpha: Tensor,
    sigma: Tensor,
    num_terms: int,
    seed: int,
    step: int = 0,
    first_sample: int = 0,
    draws: str = "iid",
) -> tuple[Tensor, Tensor]:
    def term(k: int) -> Tensor:
        if draws == "antithetic" and k % 2 == 1:
            return -_noise(x0, seed, step, first_sample, k - 1)
        return _noise(x0, seed, step, first_sample, k)

    noise = torch.stack([term(k) for k in range(num_terms)], 1)
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
