"""Entropic transport between rows and noises, by blocks: no array of size B x P is ever made.

The plan of rows x ``[B, D]`` and noises n ``[P, D]`` with uniform marginals (Cuturi 2013, "Sinkhorn distances") is
``plan_ij = exp((<x_i, n_j> + f_i + g_j) / epsilon) / (B P)``. Scores are products less those of the mean row, which the
potentials of the columns would take up anyway, so that float32 spends its digits on what differs between rows.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pydiffaccel.coupling._assignment import inner_product_cost
from pydiffaccel.ops import hungarian

# Weights below exp(-80) of a row's largest are kept at that: subnormal numbers cost a hundred times the time, and a
# column's potential rises by 80 epsilon at most in an iteration, also where its weights would all be 0.
_LEAST_LOGIT = -80.0
# The first iterations look at every 8th, 4th and 2nd of the rows of the later ones, but not at fewer than this.
_FEWEST_ROWS = 512
_MOST_ROWS_OF_A_BLOCK = 1024
# Candidates are looked for in this many slices of the columns at a time: the K largest elements lie in the K columns
# of slices whose maxima are largest.
_SLICES = 16
_AUCTION_ROUNDS = 400
# Of the scores' standard deviation. At 0.02 .. 0.06 the gain is within 0.1 % of that at smaller steps.
_AUCTION_STEP = 0.03
# Rows left over are assigned exactly, this many at a time: the one dense cost there is.
_DENSE = 2048
# Where the auction leaves more than this share of the rows over, as it does in few dimensions, they are not assigned
# among themselves: a batch of up to _DENSE is assigned exactly, a larger one of few dimensions in slices.
_LEFT_OVER = 1 / 8
_FEW_DIMENSIONS = 8


class Scores:
    """The products of rows and noises, made block by block.

    Attributes:
        deviation: float64 scalar tensor, the root mean square of ``|x_i - mean|``: the standard deviation of a score
            over Gaussian noise.
    """

    def __init__(self, x: Tensor, noise: Tensor) -> None:
        """x ``[B, D]`` and noise ``[P, D]``, float32 or float64."""
        self.x, self.noise = x, noise
        self.mean = x.mean(0)
        squares = torch.zeros((), dtype=torch.float64, device=x.device)
        for start in range(0, len(x), _MOST_ROWS_OF_A_BLOCK):
            rows = x[start : start + _MOST_ROWS_OF_A_BLOCK] - self.mean
            squares += torch.linalg.vector_norm(rows, dtype=torch.float64).square()
        self.deviation = (squares / len(x)).sqrt()

    def logits(
        self, epsilon: float, columns: Tensor, stride: int = 1, padding: int = 1
    ) -> Iterator[tuple[slice, Tensor]]:
        """(rows of x, their logits ``(score + columns) / (epsilon deviation)``) for every stride-th row.

        Logits are ``[R, P]``, in memory that the next block uses again. With padding, P is rounded up to a multiple of
        it by columns of -inf. columns ``[P]`` are potentials divided by epsilon deviation already.
        """
        noise, extra = self.noise, -len(self.noise) % padding
        if extra:
            noise = torch.cat([noise, noise.new_zeros(extra, noise.shape[1])])
            columns = torch.cat([columns, columns.new_full((extra,), -torch.inf)])
        # Rows that are all the same have deviation 0 and equal logits.
        scale = torch.where(self.deviation > 0, 1 / (epsilon * self.deviation), 0.0).to(self.x.dtype)
        elements = 1 << (26 if self.x.is_cuda else 24)
        count = max(64, min(_MOST_ROWS_OF_A_BLOCK, elements // len(noise)))
        memory = noise.new_empty(min(count, len(self.x)), len(noise))
        for start in range(0, len(self.x), count * stride):
            rows = slice(start, min(start + count * stride, len(self.x)), stride)
            block = (self.x[rows] - self.mean) * scale
            yield rows, torch.addmm(columns, block, noise.mT, out=memory[: len(block)])

    def at(self, places: Tensor) -> Tensor:
        """Scores of the noises places ``[B, K]`` of each row: ``[B, K]``."""
        out = self.x.new_empty(places.shape)
        count = max(1, (1 << (26 if self.x.is_cuda else 19)) // max(1, places.shape[1] * self.x.shape[1]))
        for start in range(0, len(places), count):
            block = places[start : start + count]
            noises = self.noise.index_select(0, block.flatten()).view(*block.shape, -1)
            rows = self.x[start : start + count] - self.mean
            out[start : start + count] = torch.bmm(noises, rows.unsqueeze(2)).squeeze(2)
        return out


def weigh(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Replaces logits ``[R, P]`` by weights relative to the row's largest; returns that and the row's sum, ``[R]``."""
    largest = logits.amax(1, keepdim=True)
    logits.sub_(largest).clamp_(min=_LEAST_LOGIT).exp_()
    return largest[:, 0], logits.sum(1)


def column_potentials(scores: Scores, epsilon: float, iterations: int, stride: int, columns: Tensor) -> Tensor:
    """Column potentials ``[P]`` after iterations of both halves, in units of epsilon deviation.

    One pass over the products makes both halves: a block of rows is normalised and at once added to the column sums.
    """
    largest = max(1, len(scores.x) // _FEWEST_ROWS)
    for number in range(iterations):
        early = 8 >> min(number, 3) if number < iterations - 1 else 1
        step = min(stride * early, largest)
        sums = torch.zeros_like(columns)
        for _, weights in scores.logits(epsilon, columns, step):
            _, total = weigh(weights)
            sums.addmv_(weights.mT, 1 / total)
        rows = -(-len(scores.x) // step)
        columns = columns - torch.log(sums * (len(columns) / rows))
    return columns


def row_potentials(scores: Scores, epsilon: float, columns: Tensor) -> Tensor:
    """The row potentials ``[B]`` with which the plan's rows sum to 1 / B, in units of epsilon deviation."""
    out = scores.x.new_empty(len(scores.x))
    for rows, weights in scores.logits(epsilon, columns):
        largest, total = weigh(weights)
        out[rows] = -(largest + torch.log(total / len(columns)))
    return out


def sampled(scores: Scores, epsilon: float, columns: Tensor, uniforms: Tensor) -> Tensor:
    """For each row a column drawn with the plan's probabilities, int64 ``[B]``; uniforms float64 ``[B]`` in [0, 1).

    By inversion in two levels, chunks of columns and then columns of a chunk, with sums in float64.
    """
    width = max(1, round(len(columns) ** 0.5))
    out = torch.empty(len(scores.x), dtype=torch.int64, device=scores.x.device)
    upper = torch.ones(width, width, dtype=torch.float64, device=out.device).triu()
    for rows, weights in scores.logits(epsilon, columns, padding=width):
        weigh(weights)
        weights[:, len(columns) :] = 0
        chunks = weights.view(len(weights), -1, width)
        upto = chunks.sum(2, dtype=torch.float64)
        below = upto @ torch.ones(upto.shape[1], upto.shape[1], dtype=torch.float64, device=out.device).triu()
        goal = uniforms[rows].unsqueeze(1) * below[:, -1:]
        chunk = (below <= goal).sum(1, keepdim=True).clamp_(max=upto.shape[1] - 1)
        rest = goal - (below.gather(1, chunk) - upto.gather(1, chunk))
        inside = chunks.gather(1, chunk.unsqueeze(2).expand(-1, 1, width)).squeeze(1).double() @ upper
        place = (inside <= rest).sum(1).clamp_(max=width - 1)
        out[rows] = (chunk[:, 0] * width + place).clamp_(max=len(columns) - 1)
    return out


def candidates(scores: Scores, epsilon: float, columns: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The count <= P columns of the greatest plan in each row: logits and int64 places, ``[B, count]``, descending."""
    size = (len(scores.x), count)
    values, places = scores.x.new_empty(size), torch.empty(size, dtype=torch.int64, device=scores.x.device)
    for rows, logits in scores.logits(epsilon, columns, padding=_SLICES):
        width = logits.shape[1] // _SLICES
        if width > count:
            best = logits.view(-1, _SLICES, width).amax(1).topk(count, 1).indices
            ours = (best.unsqueeze(2) + width * torch.arange(_SLICES, device=best.device)).flatten(1)
            top = logits.gather(1, ours).topk(count, 1)
            values[rows], places[rows] = top.values, ours.gather(1, top.indices)
        else:
            torch.topk(logits, count, 1, out=(values[rows], places[rows]))
    return values, places


def auction(values: Tensor, places: Tensor, step: Tensor, columns: int) -> tuple[Tensor, Tensor]:
    """A forward auction on a sparse graph (Bertsekas 1988): every free row bids for its best column at once.

    Args:
        values, places: ``[B, K]``, K >= 2: what a row gains by which column.
        step: scalar tensor > 0, by how much a bid exceeds what makes the second best as good.
        columns: how many there are.

    Returns:
        the column of each row and the row of each column, int64, -1 for none. On a GPU nothing waits.
    """
    size, device = len(values), values.device
    row_of, column_of = torch.full((columns,), -1, device=device), torch.full((size + 1,), -1, device=device)
    price = values.new_zeros(columns)
    every = torch.arange(max(size, columns), device=device)
    rows, nobody = every[:size], torch.full((columns,), size, device=device)
    for _ in range(_AUCTION_ROUNDS):
        free = column_of[:size] < 0
        if not values.is_cuda:
            # The few rows that are left make a round cheap. On a GPU their number would have to be waited for.
            rows = free.nonzero()[:, 0]
            if len(rows) == 0:
                break
        mine = places[rows]
        best, which = (values[rows] - price[mine]).topk(2, 1)
        wanted = mine.gather(1, which[:, :1])[:, 0]
        bid = price[wanted] + (best[:, 0] - best[:, 1]) + step
        bid = torch.where(free[rows], bid, -torch.inf)
        highest = torch.full_like(price, -torch.inf).scatter_reduce_(0, wanted, bid, "amax")
        bidder = torch.where((bid == highest[wanted]) & free[rows], rows, size)
        winner = nobody.scatter_reduce(0, wanted, bidder, "amin")
        sold = winner < size
        # Slot `size` takes what belongs to nobody.
        column_of.index_fill_(0, torch.where(sold & (row_of >= 0), row_of, size), -1)
        column_of.scatter_(0, winner, every[:columns])
        row_of = torch.where(sold, winner, row_of)
        price = torch.where(sold, highest, price)
    return column_of[:size], row_of


def leading_axis(x: Tensor) -> Tensor:
    """The direction ``[D]`` in which rows x ``[B, D]`` of mean 0 vary most, roughly, by the power method."""
    squares = x.square().sum(0)
    axis = torch.zeros_like(squares).scatter_(0, squares.argmax(0, keepdim=True), 1.0)
    for _ in range(8):
        axis = x.mT @ (x @ axis)
        axis = axis / torch.linalg.vector_norm(axis).clamp(min=torch.finfo(axis.dtype).tiny)
    return axis


def permutation(cheap: Scores, full: Scores, epsilon: float, iterations: int, stride: int, count: int) -> Tensor:
    """An assignment of all rows to as many noises, int64 ``[B]``.

    Each row gets its candidates under the plan in the cheap space; an auction with the scores of the full space assigns
    nearly all; the rows and noises left over are a smaller problem of the same kind, or are solved exactly. Where few
    dimensions leave many over, all rows are assigned exactly in slices along the direction in which they vary most.
    """
    size = len(full.x)
    columns = column_potentials(cheap, epsilon, iterations, stride, cheap.x.new_zeros(size))
    values, places = candidates(cheap, epsilon, columns, min(count, size))
    if cheap is not full:
        unit = (epsilon * cheap.deviation).to(columns.dtype)
        values = full.at(places) + (columns * unit)[places]
        step = _AUCTION_STEP * full.deviation
    else:
        step = torch.full_like(full.deviation, _AUCTION_STEP / epsilon)
    chosen, row_of = auction(values, places, step.to(values.dtype), size)
    rows, noises = (chosen < 0).nonzero()[:, 0], (row_of < 0).nonzero()[:, 0]
    if len(rows) > _LEFT_OVER * size and (size <= _DENSE or full.x.shape[1] < _FEW_DIMENSIONS):
        axis = leading_axis(full.x - full.mean)
        rows, noises = ((tensor @ axis).argsort(stable=True) for tensor in (full.x, full.noise))
    elif _DENSE < len(rows) <= size // 2:
        rest = Scores(full.x[rows], full.noise[noises])
        chosen[rows] = noises[permutation(rest, rest, epsilon, iterations, stride, count)]
        return chosen
    for own, theirs in zip(rows.split(_DENSE), noises.split(_DENSE), strict=True):
        cost = inner_product_cost(full.x[own] - full.mean, full.noise[theirs])
        # On a GPU an invalid problem (NaN in the data) is not raised but answered with -1. The loss then shows it.
        chosen[own] = theirs[hungarian(cost).clamp_(min=0)]
    return chosen
