"""What rounding alone does to a stored weight change: its energy and its largest direction."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from ..errors import LoratomyError

ROWS = 512
"""Rows handled at once."""
MARGIN = 2.0
"""Times the largest singular value that rounding alone is expected to have."""


@dataclass(frozen=True, slots=True)
class Change:
    """``dW = W' - W`` of one matrix, and what rounding may have done to it."""

    dw: torch.Tensor
    """``[d_out, d_in]``, float64 for float32 weights, float32 for shorter ones."""
    energy: float
    """``||dW||**2``."""
    floor: float
    """Expected squared norm of the rounding."""
    edge: float
    """Singular values up to this cannot be told from rounding."""


def coarser(one: torch.dtype, other: torch.dtype) -> torch.dtype:
    """The number format with the larger steps."""
    return max(one, other, key=lambda d: torch.finfo(d).eps)


def holds(wide: torch.dtype, narrow: torch.dtype) -> bool:
    """Whether every number of one format is a number of the other, so that nothing is rounded."""
    one, other = torch.finfo(wide), torch.finfo(narrow)
    return one.eps <= other.eps and one.max >= other.max and one.tiny <= other.tiny


def step(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Distance between neighbouring numbers of `dtype` at these magnitudes, float32."""
    info = torch.finfo(dtype)
    least = max(info.tiny, torch.finfo(torch.float32).tiny)
    # A float32 without sign and mantissa is the power of two below it; frexp is ten times slower.
    bits = values.to(torch.float32).abs().clamp_min(least).view(torch.int32)
    return bits.bitwise_and(0x7F800000).view(torch.float32) * info.eps


def rounding_variance(
    before: torch.Tensor, after: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """Expected squared rounding error of each entry of ``after - before``, float64.

    The sum was rounded, and the change may have been rounded before it was added: each error is
    uniform over one step of the format, of variance ``step**2 / 12``.

    Args:
        before: base weights.
        after: merged weights.
        dtype: the format that they were rounded to.
    """
    of_sum = step(torch.maximum(before.abs(), after.abs()), dtype).double().square_()
    return of_sum.add_(step(after - before, dtype).double().square_()).div_(12)


def change_of(
    name: str, before: torch.Tensor, after: torch.Tensor, dtype: torch.dtype
) -> Change | None:
    """dW of a matrix and its rounding; None where every weight is equal.

    Args:
        name: for errors.
        before: base weights ``[d_out, d_in]`` as stored.
        after: merged weights, likewise.
        dtype: the format that they were rounded to.

    Raises:
        LoratomyError: NaN or infinite weights.
    """
    if before.dtype == after.dtype and torch.equal(before, after):
        return None
    wide = torch.float64 if torch.finfo(dtype).bits >= 32 else torch.float32
    dw = torch.empty(before.shape, dtype=wide)
    per_row, per_column = [], torch.zeros(before.shape[1], dtype=torch.float64)
    energy, at = 0.0, 0
    for old, new in rows(before, after):
        difference = new - old
        part = float(difference.square().sum())
        if part != part or part == float("inf"):
            raise LoratomyError(f"{name} holds NaN or infinite values")
        dw[at : at + len(old)] = difference
        energy, at = energy + part, at + len(old)
        variance = rounding_variance(old, new, dtype)
        per_row.append(variance.sum(1))
        per_column += variance.sum(0)
    by_row = torch.cat(per_row)
    # Bandeira & van Handel 2016: the norm of independent noise is about the largest row's plus
    # the largest column's; sigma (sqrt m + sqrt n) where all entries are alike.
    edge = MARGIN * float(by_row.max().sqrt() + per_column.max().sqrt())
    return Change(dw, energy, float(by_row.sum()), edge) if energy else None


def alike(before: torch.Tensor, after: torch.Tensor, dtype: torch.dtype | None) -> bool:
    """Whether two tensors hold equal numbers, or within half a step of `dtype` where it is given.

    Args:
        before: base weights.
        after: merged weights.
        dtype: the format that one of them was rounded to; None: neither was.
    """
    for old, new in rows(before, after):
        gap = (new - old).abs()
        if dtype is None:
            allowed = torch.zeros(())
        else:
            allowed = step(torch.maximum(old.abs(), new.abs()), dtype) / 2
        if not (gap <= allowed).all():
            return False
    return True


def rows(*tensors: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    """Tensors of equal shape some rows at a time, float64."""
    for parts in zip(*(t.split(ROWS) for t in tensors), strict=True):
        yield tuple(part.double() for part in parts)
