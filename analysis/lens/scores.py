"""What directions read and write, as robust scores of tokens with a null of random directions."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ...core.adapter.factors import Adapter
from ...core.model.families import submodule
from ...core.model.subject import Subject
from ..activations.residuals import Batch, Prompts
from .inputs import after_lead, stream_inputs
from .reading import mean_inputs

Part = tuple[str, int]
"""A module and its expert, -1 for linear layers."""


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores of tokens along the two ends of some directions of one module."""

    ids: np.ndarray
    """Tokens with the highest scores, ``[..., end, top]``; -1 where there are fewer."""
    values: np.ndarray
    """Their scores, descending, ``[..., end, top]``; NaN where there are fewer."""
    null: float
    """95 % quantile of the highest score for random directions; NaN where nothing was scored."""

    def only(self, direction: int) -> "Scores":
        """Those of one direction, ``[end, top]``."""
        return Scores(self.ids[direction], self.values[direction], self.null)

    def turned(self) -> "Scores":
        """The same with the two ends exchanged."""
        return Scores(self.ids[..., ::-1, :], self.values[..., ::-1, :], self.null)


def robust_z(values: torch.Tensor) -> torch.Tensor:
    """Distance from the median in robust standard deviations (1.4826 MAD), ``[token, direction]``.

    NaN marks tokens that are not read; a direction that most tokens share one value of is NaN.
    """
    away = values.double() - values.double().nanmedian(0).values
    spread = 1.4826 * away.abs().nanmedian(0).values
    return away / torch.where(spread > 0, spread, torch.nan)


def score(values: torch.Tensor, own: int, tokens: np.ndarray, *, top: int) -> Scores:
    """The tokens at both ends of some directions, beside what random directions give.

    Args:
        values: projections ``[token, direction]``, NaN where a token is not read.
        own: how many of the directions are the adapter's; the others are random ones.
        tokens: ids of the tokens.
        top: tokens kept for each end.
    """
    z = robust_z(values)
    both = torch.stack([z, -z], -1).nan_to_num(nan=-torch.inf)  # token direction end
    found = both[:, :own].topk(min(top, len(z)), dim=0)
    best = found.values.permute(1, 2, 0).numpy()
    ids = tokens[found.indices.permute(1, 2, 0).numpy()]
    short = ((0, 0), (0, 0), (0, top - best.shape[-1]))
    best = np.pad(best, short, constant_values=-np.inf)
    ids = np.where(np.isfinite(best), np.pad(ids, short), -1)
    peaks = both[:, own:].amax(0)
    peaks = peaks[torch.isfinite(peaks)].numpy()
    null = float(np.quantile(peaks, 0.95)) if peaks.size else float("nan")
    return Scores(ids, np.where(np.isfinite(best), best, np.nan), null)


def on_vocabulary(
    subject: Subject,
    directions: Mapping[Part, torch.Tensor],
    tokens: np.ndarray,
    *,
    batch_tokens: int,
) -> dict[Part, torch.Tensor]:
    """Projections of every token's reading on input directions, ``[token, direction]``.

    A reading is the module's input at the token, put behind the first token of every prompt, less
    the mean over the vocabulary, at unit length; NaN where a fused expert is not given the token.

    Args:
        subject: the base, without adapter.
        directions: ``[direction, d_in]`` by module and expert.
        tokens: ids.
        batch_tokens: most positions in a forward pass.
    """
    names = list(dict.fromkeys(name for name, _ in directions))
    if not names:
        return {}
    centre = mean_inputs(subject, names, tokens, batch_tokens=batch_tokens)
    out = {part: torch.full((len(tokens), len(v)), torch.nan) for part, v in directions.items()}

    def see(name: str, inputs: torch.Tensor, routed: torch.Tensor | None, batch: Batch) -> None:
        away = inputs[:, -1].float() - centre[name]
        unit = away / away.norm(dim=-1, keepdim=True).clamp_min(1e-30)
        for (module, expert), v in directions.items():
            if module != name:
                continue
            here = unit @ v.to(unit.device).mT
            if routed is not None:
                here[(routed[:, -1] != expert).all(-1)] = torch.nan
            out[module, expert][batch.rows] = here.cpu()

    stream_inputs(
        subject,
        names,
        after_lead(subject, tokens),
        see,
        batch_tokens=batch_tokens,
        label="what directions listen for",
    )
    return out


def on_prompts(
    subject: Subject,
    adapter: Adapter,
    directions: Mapping[Part, torch.Tensor],
    prompts: Prompts,
    *,
    batch_tokens: int,
) -> tuple[np.ndarray, dict[Part, torch.Tensor]]:
    """The tokens of some prompts, and their mean projections on internal input directions.

    Args:
        subject: with the adapter active.
        adapter: that adapter.
        directions: ``[direction, d_in]`` by module and expert.
        prompts: token ids.
        batch_tokens: most positions in a forward pass.

    Returns:
        Ids ``[token]`` and means over all places of each token ``[token, direction]``; NaN where a
        fused expert is never given it.
    """
    tokens = np.array(sorted({token for prompt in prompts for token in prompt}))
    names = list(dict.fromkeys(name for name, _ in directions))
    if not names:
        return tokens, {}
    place = torch.full((int(tokens.max()) + 1,), -1)
    place[torch.as_tensor(tokens)] = torch.arange(len(tokens))
    sums = {p: torch.zeros(len(tokens), len(v), dtype=torch.float64) for p, v in directions.items()}
    counts = {part: torch.zeros(len(tokens), dtype=torch.float64) for part in directions}

    def see(name: str, inputs: torch.Tensor, routed: torch.Tensor | None, batch: Batch) -> None:
        for part in [p for p in directions if p[0] == name]:
            mask = batch.mask
            if routed is not None:
                mask = mask & (routed == part[1]).any(-1)
            x = inputs[mask]
            if routed is not None:
                x = _inside(subject, adapter, part, x)
            rows = place[batch.ids[mask].cpu()]
            here = x.float() @ directions[part].to(x.device).mT
            sums[part].index_add_(0, rows, here.double().cpu())
            counts[part].index_add_(0, rows, torch.ones(len(rows), dtype=torch.float64))

    stream_inputs(
        subject, names, prompts, see, batch_tokens=batch_tokens, label="what directions read inside"
    )
    return tokens, {part: sums[part] / counts[part][:, None] for part in directions}


def _inside(subject: Subject, adapter: Adapter, part: Part, x: torch.Tensor) -> torch.Tensor:
    """What an expert's output weight is given where the experts are given x, ``[row, d_inner]``."""
    name, expert = part
    path = name.rsplit(".", 1)[0]
    experts: Any = submodule(subject.model, path)
    while hasattr(experts, "base_layer"):  # an adapter's wrappers
        experts = experts.base_layer
    weight = experts.gate_up_proj[expert]
    inner = x @ weight.mT
    f = adapter.modules.get(f"{path}.gate_up_proj")
    if f is not None:
        a, b = (t[expert].to(x.device, x.dtype) for t in (f.a, f.b))
        inner = inner + f.scaling * (x @ a.mT) @ b.mT
    with torch.inference_mode():
        return experts._apply_gate(inner)
