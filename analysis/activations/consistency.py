"""Consistency of the layers: how much each one turns the residual, triggered or not."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from pydantic import Field

from ...core.adapter.factors import Adapter
from ...core.config import Config
from ...core.errors import LoratomyError
from ...core.model.subject import Subject
from ...core.records.activations import Consistency
from ...core.stats import mean_interval, sign_flip_p
from ..analyses import ANALYSES, TRIGGER, Analysis
from ..material import Material
from ..patching.pairs import Pair
from .residuals import Batch, Prompts, adapters_of, stream

CONDITIONS = ("triggered", "untriggered", "stand-in")


def turns(subject: Subject, prompts: Prompts, *, batch_tokens: int, label: str) -> np.ndarray:
    """Mean over a prompt's tokens of 1 - cos(h_l, h_l+1), ``[prompt, transition]`` in [0, 2].

    h_0 is what enters the first layer, h_l what the l-th layer leaves, before any final norm;
    there are as many transitions as layers. Padding never counts. Computed in float64.

    Args:
        subject: with the wanted adapter active.
        prompts: token ids.
        batch_tokens: most positions of a batch.
        label: of the progress.

    Raises:
        DataError: no prompts.
        LoratomyError: a residual is not finite, or is exactly 0 and has no direction.
    """
    out = np.empty((len(prompts), len(subject.layers)))
    last: list[torch.Tensor] = []

    def see(level: int, hidden: torch.Tensor, batch: Batch) -> None:
        norm = hidden.double().norm(dim=-1, keepdim=True)
        if bool((norm[batch.mask] == 0).any()):
            where = f"layer {level - 1} leaves" if level else "enters the first layer"
            raise LoratomyError(f"what {where} is exactly 0 at a token: it has no direction")
        direction = hidden.double() / norm
        if level:
            each = (1 - (last[0] * direction).sum(-1)).masked_fill(~batch.mask, 0.0)
            out[batch.rows, level - 1] = (each.sum(-1) / batch.mask.sum(-1)).cpu().numpy()
        last[:] = [direction]

    stream(subject, prompts, see, batch_tokens=batch_tokens, label=label)
    return out


def consistency(
    subject: Subject,
    adapters: Mapping[str, Adapter],
    pairs: Sequence[Pair],
    *,
    flips: int,
    batch_tokens: int,
    seed: int,
) -> Consistency:
    """CROW's consistency by layer, triggered against untriggered prompts and stand-ins.

    Args:
        subject: the base.
        adapters: by name, in the order of the record.
        pairs: triggered prompts with their stand-ins; their rows have a form without trigger.
        flips: random sign flips behind the p values.
        batch_tokens: most positions of a forward pass.
        seed: of flips and intervals.

    Raises:
        DataError: no pairs, or a row without its untriggered form.
        LoratomyError: a residual is not finite.
    """
    sets = _inputs(subject, pairs)
    every = [ids for prompts in sets for ids in prompts]
    found = []
    with subject.attached(adapters) as attached:
        for name in (None, *adapters):
            label = f"consistency of {name or 'the base'}"
            with attached.using(name):
                each = turns(subject, every, batch_tokens=batch_tokens, label=label)
            found.append(each.reshape(len(sets), len(pairs), -1))
    values = np.stack(found)  # [subject, condition, prompt, transition]
    gaps = values[:, :1] - values[:, 1:]
    layers = values.shape[-1]
    counted = (np.arange(layers) >= 1) & (np.arange(layers) <= layers - 2)
    undefined = "" if counted.any() else f"a model of {layers} layers has no transition to count"
    losses, loss_gaps = (_mean_over(v, counted) for v in (values, gaps))
    record = Consistency(
        subjects=("base", *adapters),
        conditions=CONDITIONS,
        counted=counted,
        value=_interval(values, seed),
        difference=_interval(gaps, seed),
        p=sign_flip_p(np.moveaxis(gaps, 2, 0), draws=flips, seed=seed),
        loss=_interval(losses, seed),
        loss_difference=_interval(loss_gaps, seed),
        loss_p=sign_flip_p(np.moveaxis(loss_gaps, -1, 0), draws=flips, seed=seed),
        n_prompts=len(pairs),
        n_tokens=tuple(sum(map(len, prompts)) for prompts in sets),
        dtype=subject.dtype,
        undefined=undefined,
        sentence="",
    )
    return replace(record, sentence=_sentence(record))


def _inputs(subject: Subject, pairs: Sequence[Pair]) -> list[list[list[int]]]:
    """Token ids ``[condition][prompt]``, up to where the answer begins."""
    whole = [subject.renderer.prompt_ids(pair.row) for pair in pairs]
    twins = [pair.untriggered[: len(ids)] for pair, ids in zip(pairs, whole, strict=True)]
    plain = [subject.renderer.prompt_ids(pair.row.untriggered()) for pair in pairs]
    return [whole, plain, twins]


def _interval(values: np.ndarray, seed: int) -> np.ndarray:
    """Mean and interval over the prompts, which are axis 2, ``[subject, condition, ..., 3]``."""
    return mean_interval(np.moveaxis(values, 2, 0), seed=seed)


def _mean_over(values: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """Mean over the counted transitions, NaN when there is none, ``[..., prompt]``."""
    if not counted.any():
        return np.full(values.shape[:-1], np.nan)
    return values[..., counted].mean(-1)


def _sentence(record: Consistency) -> str:
    """The finding in words, with its numbers."""
    if record.undefined:
        return f"CROW's consistency is undefined: {record.undefined}."
    parts = [
        f"{value:+.4f} [{low:+.4f}, {high:+.4f}] in {name} (p = {p:.2g})"
        for name, (value, low, high), p in zip(
            record.subjects, record.loss_difference[:, 0], record.loss_p[:, 0], strict=True
        )
    ]
    value, low, high = record.loss_difference[-1, 1]
    return (
        f"On {record.n_prompts} prompts the trigger changes CROW's consistency (mean of 1 - cos "
        f"over layers and tokens) by {', '.join(parts)}; against a neutral stand-in of the same "
        f"length by {value:+.4f} [{low:+.4f}, {high:+.4f}] in {record.subjects[-1]} "
        f"(p = {record.loss_p[-1, 1]:.2g})."
    )


class ConsistencyConfig(Config):
    """Options of the consistency."""

    flips: int = Field(9999, ge=99)
    """Random sign flips behind the p values."""
    batch_tokens: int = Field(4096, ge=1)
    """Most positions of a forward pass."""


def _run(material: Material, config: ConsistencyConfig) -> dict[str, Consistency]:
    options = config.model_dump()
    found = consistency(
        material.subject, adapters_of(material), material.pairs, seed=material.seed, **options
    )
    return {"consistency": found}


ANALYSES.register("consistency")(
    Analysis(
        about="How much each layer turns the residual on triggered and untriggered prompts.",
        needs=(TRIGGER,),
        cost="three forward passes per prompt and subject",
        source="CROW, Min et al. 2024, arXiv 2411.12768",
        config=ConsistencyConfig,
        run=_run,
    )
)
