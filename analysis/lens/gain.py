"""How much a weight change makes of unit vectors, with the same of random directions beside it."""

import torch

from ...core.adapter.algebra import norm, spectrum
from ...core.adapter.factors import Factors

DRAWS = 16
"""Weight changes of the same singular values in random directions, for the null."""


class Gain:
    """``|dW e|^2`` (or ``|dW^T e|^2``) of one module for unit vectors e, in factor form.

    As ``|dW e|^2 = sum_i s_i^2 (v_i . e)^2``, these are the singular directions weighted by their
    squared singular values, whatever their signs.
    """

    def __init__(
        self, factors: Factors, *, output: bool, device: torch.device, generator: torch.Generator
    ) -> None:
        """Factors ready for use; with `output`, vectors are compared with what dW writes."""
        a, b = factors.a.double(), factors.b.double().mT
        near, far = (b, a) if output else (a, b)
        self.near = near.float().to(device)
        self.gram = (far @ far.mT * factors.scaling**2).float().to(device)
        self.usual = float(norm(factors).square().sum()) / near.shape[-1]
        """Expected gain of a random unit vector."""
        self.weights = spectrum(factors).square().float().to(device)
        shape = (DRAWS, factors.rank, near.shape[-1])
        drawn = torch.randn(shape, generator=generator)
        self.random = (drawn / drawn.norm(dim=-1, keepdim=True)).to(device)

    def __call__(self, unit: torch.Tensor, chosen: torch.Tensor | None = None) -> torch.Tensor:
        """Gains ``[batch, 1 + draw]`` of vectors ``[batch, d]``: its own, then of random ones.

        Args:
            unit: the vectors.
            chosen: of fused experts, which ones each vector goes to, ``[batch, chosen]``; the
                others count 0.
        """
        if self.near.dim() == 2:
            return self._of(unit, self.near, self.gram, self.weights)
        out = torch.zeros(len(unit), 1 + DRAWS, device=unit.device)
        for expert in range(len(self.near)):
            rows = slice(None) if chosen is None else (chosen == expert).any(-1)
            parts = self.near[expert], self.gram[expert], self.weights[expert]
            out[rows] += self._of(unit[rows], *parts)
        return out

    def _of(
        self, unit: torch.Tensor, near: torch.Tensor, gram: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        low = unit @ near.mT
        own = (low @ gram * low).sum(-1, keepdim=True)
        random = torch.einsum("nd,krd->nkr", unit, self.random[:, : len(weights)]).square()
        return torch.cat([own, random @ weights], -1)
