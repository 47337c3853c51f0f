"""The strongest singular triplets of W + dW, and how near a vector can be to any of W's."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.sparse.linalg import ArpackError, LinearOperator, svds

from ...core.adapter.factors import Factors

TOLERANCE = 1e-5
"""Of the iteration, relative; the products are in float32."""
ACCEPTED = 1e-3
"""Relative residual beyond which an iterated result is thrown away for a dense one."""

_OPERATOR: Any = LinearOperator  # scipy's own annotations refuse what its documentation says
_SVDS: Any = svds


@dataclass(frozen=True, slots=True)
class Triplets:
    """Singular values, descending, with their vectors, float32 on the weight's device."""

    u: torch.Tensor
    """``[d_out, k]``."""
    s: torch.Tensor
    """``[k]``."""
    v: torch.Tensor
    """``[d_in, k]``."""
    residual: float
    """Largest ``|M v - s u|`` or ``|M^T u - s v|`` over the largest singular value."""


def changed(w: torch.Tensor, change: Factors) -> torch.Tensor:
    """``M = W + scaling B A``, ``[d_out, d_in]`` in W's number format and on its device."""
    return w + (change.scaling * change.b.to(w)) @ change.a.to(w)


def _checked(m: torch.Tensor, u: torch.Tensor, s: torch.Tensor, v: torch.Tensor) -> Triplets:
    gaps = ((m @ v - u * s).norm(dim=0), (m.mT @ u - v * s).norm(dim=0))
    top = float(s[0])
    residual = max(float(gap.max()) for gap in gaps) / top if top > 0 else 0.0
    return Triplets(u, s, v, residual)


def all_triplets(m: torch.Tensor) -> Triplets:
    """All singular triplets by a dense decomposition, ``min(d_out, d_in)`` of them."""
    u, s, vh = torch.linalg.svd(m, full_matrices=False)
    return _checked(m, u, s, vh.mT)


def strongest(m: torch.Tensor, k: int, *, seed: int) -> Triplets:
    """The k largest singular triplets by implicitly restarted Lanczos, residuals checked.

    ARPACK on the smaller Gram matrix (Lehoucq, Sorensen & Yang 1998); a dense decomposition where
    it does not converge.

    Args:
        m: any matrix, ``[d_out, d_in]`` float32.
        k: triplets, below both of its sides.
        seed: of the start vector.
    """

    def onto(x: Any) -> torch.Tensor:
        return torch.from_numpy(np.asarray(x, np.float32)).to(m.device).reshape(len(x), -1)

    def times(w: torch.Tensor, x: Any) -> np.ndarray:
        return (w @ onto(x)).double().cpu().numpy()

    operator = _OPERATOR(
        tuple(m.shape),
        matvec=lambda x: times(m, x).ravel(),
        rmatvec=lambda y: times(m.mT, y).ravel(),
        matmat=lambda x: times(m, x),
        rmatmat=lambda y: times(m.mT, y),
        dtype=np.float64,
    )
    start = np.random.default_rng(seed).normal(size=min(m.shape))
    try:
        u, s, vh = _SVDS(operator, k=k, tol=TOLERANCE, v0=start)
    except ArpackError:
        return all_triplets(m)
    order = np.argsort(-s)
    found = _checked(m, onto(u[:, order]), onto(s[order])[:, 0], onto(vh[order].T))
    return found if found.residual <= ACCEPTED else all_triplets(m)


def column_part(w: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """The part of vectors inside W's column space, ``[d_out, n]``.

    Left vectors with singular value zero are any basis of what is left over, so that they are not
    compared with. QR gives the space without squaring W's condition.
    """
    if w.shape[0] <= w.shape[1]:
        return u
    q = torch.linalg.qr(w).Q
    return q @ (q.mT @ u)


def largest_cosine_bound(w: torch.Tensor, u: torch.Tensor, *, steps: int) -> torch.Tensor:
    """Upper bounds of ``max_j |<u, u_j>|`` over all left singular vectors of W, ``[n]``.

    The squares ``<u, u_j>^2`` are the jumps of u's spectral measure under W W^T. Lanczos from u
    gives its Gauss quadrature, whose nodes separate the measure (Chebyshev, Markov & Stieltjes;
    Golub & Meurant 2010, ch. 6): between neighbouring nodes lies no more than both their weights,
    so no jump is larger. The more steps, the sharper; orthogonality is kept in full.

    Args:
        w: ``[d_out, d_in]``, float32.
        u: vectors ``[d_out, n]`` of any length; bounds are for them as they are.
        steps: of Lanczos, each two products with W.
    """
    size = u.double().norm(dim=0)
    q = torch.where(size > 0, u.double() / size.clamp_min(1e-300), 0.0)
    steps = min(steps, w.shape[0])
    basis = torch.zeros(steps, *u.shape, dtype=torch.float64, device=u.device)
    t = torch.zeros(u.shape[1], steps, steps, dtype=torch.float64, device=u.device)
    scale = torch.zeros_like(size)
    for i in range(steps):
        basis[i] = q
        image = (w @ (w.mT @ q.float())).double()
        t[:, i, i] = (q * image).sum(0)
        scale = torch.maximum(scale, image.norm(dim=0))
        for _ in range(2):  # once loses orthogonality to rounding
            image -= torch.einsum("idn,in->dn", basis[: i + 1],
                                  torch.einsum("idn,dn->in", basis[: i + 1], image))  # fmt: skip
        length = image.norm(dim=0)
        more = length > 1e-6 * scale  # else u lies in i + 1 singular spaces, and all is known
        q = torch.where(more, image / length.clamp_min(1e-300), 0.0)
        if i + 1 < steps:
            t[:, i, i + 1] = t[:, i + 1, i] = torch.where(more, length, 0.0)
    weights = torch.linalg.eigh(t).eigenvectors[:, 0].square()
    neighbours = weights[:, :-1] + weights[:, 1:] if steps > 1 else weights
    return size * neighbours.max(dim=1).values.clamp(0, 1).sqrt()
