"""Exact linear algebra of weight changes, in factor form: no dense dW is ever made.

QR of B and of A transposed, then an SVD of the small core, gives the exact SVD of
``dW = scaling * B @ A`` (Golub & Van Loan, 4th ed., 5.4). Everything runs in float64.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from .factors import Adapter, Factors


@dataclass(frozen=True, slots=True)
class Svd:
    """``dW = u @ diag(s) @ vh``, batched over experts where there are some."""

    u: torch.Tensor
    """``[..., d_out, rank]``, orthonormal columns."""
    s: torch.Tensor
    """``[..., rank]``, descending, float64."""
    vh: torch.Tensor
    """``[..., rank, d_in]``, orthonormal rows."""


def _seen(s: torch.Tensor, factors: Factors) -> torch.Tensor:
    """Singular values, zero where they are below the float32 rounding of the factors.

    Each ``b_i a_i`` is known to about 6e-8 of its size; what is left where they cancel, as between
    two equal adapters, is noise with a direction and must not be taken for one.
    """
    a, b = factors.a.double(), factors.b.double()
    size = (a.norm(dim=-1) * b.norm(dim=-2)).sum(-1, keepdim=True) * factors.scaling
    return torch.where(s > 1e-7 * size, s, torch.zeros_like(s))


def svd(factors: Factors) -> Svd:
    """The singular value decomposition of dW, with ``min(rank, d_in, d_out)`` directions."""
    q_out, r_out = torch.linalg.qr(factors.b.double())
    q_in, r_in = torch.linalg.qr(factors.a.double().mT)
    u, s, vh = torch.linalg.svd(r_out @ r_in.mT * factors.scaling, full_matrices=False)
    return Svd(q_out @ u, _seen(s, factors), vh @ q_in.mT)


def spectrum(factors: Factors) -> torch.Tensor:
    """Singular values of dW alone, ``[..., rank]``: the triangular factors suffice."""
    r_out = torch.linalg.qr(factors.b.double(), mode="r").R
    r_in = torch.linalg.qr(factors.a.double().mT, mode="r").R
    return _seen(torch.linalg.svdvals(r_out @ r_in.mT * factors.scaling), factors)


def from_svd(decomposition: Svd, *, scaling: float = 1.0) -> Factors:
    """Balanced factors of an SVD: direction i is row i of A and column i of B."""
    root = (decomposition.s / scaling).sqrt()
    return Factors(
        (root[..., None] * decomposition.vh).float(),
        (decomposition.u * root[..., None, :]).float(),
        scaling,
    )


def svd_form(adapter: Adapter) -> Adapter:
    """The same adapter with every module as balanced singular directions, strongest first."""
    return adapter.with_modules(
        {n: from_svd(svd(f), scaling=f.scaling) for n, f in adapter.modules.items()}
    )


def scale_directions(adapter: Adapter, gates: Mapping[str, torch.Tensor]) -> Adapter:
    """The adapter with direction i of each module scaled by its gate, ``[..., rank]``.

    A gate of 0 zeroes both factors, so that the direction also gets no gradient later.
    """
    modules = {}
    for name, f in adapter.modules.items():
        gate = gates[name].to(f.a.dtype)
        live = (gate != 0).to(f.a.dtype)
        modules[name] = Factors(f.a * gate[..., None], f.b * live[..., None, :], f.scaling)
    return adapter.with_modules(modules)


def stack(left: Factors, right: Factors, *, sign: float = -1.0) -> Factors:
    """Factors of ``dW_left + sign * dW_right``: the two sets side by side."""
    a = torch.cat([left.a.double(), right.a.double()], -2)
    b = torch.cat([left.b.double() * left.scaling, right.b.double() * (sign * right.scaling)], -1)
    return Factors(a, b, 1.0)


def norm(factors: Factors) -> torch.Tensor:
    """Frobenius norm of dW, per expert: ``sqrt(tr(B^T B A A^T))`` on rank x rank matrices."""
    a, b = factors.a.double(), factors.b.double()
    squared = ((b.mT @ b) * (a @ a.mT)).sum((-2, -1)).clamp_min(0)
    return squared.sqrt() * abs(factors.scaling)


def adapter_distance(left: Adapter, right: Adapter) -> float:
    """Frobenius norm of the difference of two adapters on the same modules."""
    total = sum(
        float(spectrum(stack(left.modules[n], right.modules[n])).square().sum())
        for n in left.modules
    )
    return total**0.5


def adapter_norm(adapter: Adapter) -> float:
    """Frobenius norm of all weight changes together."""
    return sum(float(norm(f).square().sum()) for f in adapter.modules.values()) ** 0.5


def principal_angles(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Angles between two column spaces, radians ascending (Bjoerck & Golub 1973).

    Args:
        left: orthonormal columns ``[d, p]``.
        right: orthonormal columns ``[d, q]``.

    Returns:
        ``[min(p, q)]``; small angles come from sines, where the cosine loses its digits.
    """
    cosines = torch.linalg.svdvals(left.mT @ right).clamp(0, 1)
    if left.shape[-1] < right.shape[-1]:
        left, right = right, left
    sines = torch.linalg.svdvals(right - left @ (left.mT @ right)).flip(-1).clamp(0, 1)
    return torch.where(cosines.square() < 0.5, cosines.acos(), sines.asin())
