"""The logit lens: what each layer predicts of the target, place by place."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from pydantic import Field

from ...core.adapter.factors import Adapter
from ...core.config import Config
from ...core.errors import DataError
from ...core.model.families import logits_of
from ...core.model.subject import Subject
from ...core.records.lens import LogitLens
from ...core.stats import mean_interval
from ..activations.residuals import Batch, adapters_of, stream
from ..analyses import ANALYSES, TRIGGER, Analysis
from ..material import Material
from ..patching.pairs import Columns, Pair, make_columns
from .preference import token_text


@dataclass(frozen=True, slots=True)
class Places:
    """Where the lens reads each prompt, and the tokens it looks for there."""

    columns: Columns
    """The named places; the last column is the prompt's last place, whatever it is called."""
    positions: list[list[int]]
    """All places of a prompt, ``[prompt][place]``."""
    column: list[list[int]]
    """Column of each place."""
    wanted: list[list[int]]
    """The target's next token there."""


@dataclass(frozen=True, slots=True)
class Readout:
    """What one subject's layers predict at every place, ``[layer, place]``."""

    log_prob: np.ndarray
    rank: np.ndarray
    top: np.ndarray


def places_of(columns: Columns, pairs: Sequence[Pair]) -> Places:
    """The places of every prompt: of stretches of prompt the last one, of the target all.

    One more column, ``len(columns.labels)``, is the place where the answer is decided.
    """
    positions, column, wanted = [], [], []
    for pair, spots in zip(pairs, columns.positions, strict=True):
        last = len(pair.triggered) - 1
        here = [
            (c, p)
            for c, role in enumerate(columns.roles)
            for p in (spots[c] if role == "target" else spots[c][-1:])
        ]
        here.append((len(columns.labels), last))
        positions.append([p for _, p in here])
        column.append([c for c, _ in here])
        wanted.append([pair.target[max(0, p - last)] for _, p in here])
    return Places(columns, positions, column, wanted)


def logit_lens(
    subject: Subject,
    adapters: Mapping[str, Adapter],
    pairs: Sequence[Pair],
    *,
    batch_tokens: int,
    rows: int,
) -> LogitLens:
    """The target's log-probability after each layer at each place, for base and adapters.

    Args:
        subject: the base.
        adapters: by name; the base without any of them comes first in the record.
        pairs: triggered prompts with their targets.
        batch_tokens: most positions in a forward pass.
        rows: most places at a time for which all tokens' logits are held.

    Raises:
        DataError: no prompts.
        LoratomyError: a residual is not finite; names the layer.
    """
    if not pairs:
        raise DataError("the logit lens needs triggered prompts; there are none")
    columns = make_columns(subject.renderer, pairs)
    places = places_of(columns, pairs)
    prompts = [pair.triggered + pair.target[:-1] for pair in pairs]
    names = ("base", *adapters)
    read: list[list[list[Readout]]] = []
    error = 0.0
    with subject.attached(adapters) as attached:
        for name in names:
            with attached.using(None if name == "base" else name):
                found = _read(subject, prompts, places, batch_tokens, rows, f"logit lens, {name}")
                error = max(error, _self_error(subject, prompts[0], places, found[0]))
            read.append(found)
    return _record(subject, names, pairs, places, read, error)


def _read(
    subject: Subject,
    prompts: Sequence[list[int]],
    places: Places,
    batch_tokens: int,
    rows: int,
    label: str,
) -> list[list[Readout]]:
    """What each layer predicts at each prompt's places, ``[prompt][layer]``."""
    out: list[list[Readout]] = [[] for _ in prompts]

    def see(level: int, hidden: torch.Tensor, batch: Batch) -> None:
        if level == 0:  # the embeddings: no layer has run
            return
        where = [(k, p) for k, row in enumerate(batch.rows) for p in places.positions[row]]
        index = torch.tensor(where, device=hidden.device)
        wanted = torch.tensor(
            [t for row in batch.rows for t in places.wanted[row]], device=hidden.device
        )
        parts = [
            _of(subject, hidden[i[:, 0], i[:, 1]], t)
            for i, t in zip(index.split(rows), wanted.split(rows), strict=True)
        ]
        log_prob, rank, top = (np.concatenate(p) for p in zip(*parts, strict=True))
        ends = np.cumsum([len(places.positions[row]) for row in batch.rows])[:-1]
        for row, *values in zip(
            batch.rows, *(np.split(v, ends) for v in (log_prob, rank, top)), strict=True
        ):
            out[row].append(Readout(*values))

    stream(subject, prompts, see, batch_tokens=batch_tokens, label=label)
    return out


def _of(
    subject: Subject, hidden: torch.Tensor, wanted: torch.Tensor
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Log-probability and rank of the wanted tokens, and the likeliest ones, ``[place]`` each."""
    with torch.inference_mode():
        log_probs = logits_of(subject.model, subject.family, hidden).float().log_softmax(-1)
        own = log_probs.gather(-1, wanted[:, None])
        rank = (log_probs > own).sum(-1) + 1
        top = log_probs.argmax(-1)
    return own[:, 0].double().cpu().numpy(), rank.cpu().numpy(), top.cpu().numpy()


def _self_error(subject: Subject, prompt: list[int], places: Places, found: list[Readout]) -> float:
    """How far the last layer's values are from the model's own on the first prompt, nats."""
    ids = torch.tensor([prompt], device=subject.device)
    with torch.inference_mode():
        logits = subject.model(input_ids=ids, use_cache=False).logits[0, places.positions[0]]
        wanted = torch.tensor(places.wanted[0], device=logits.device)[:, None]
        own = logits.float().log_softmax(-1).gather(-1, wanted)[:, 0]
    return float(np.abs(own.double().cpu().numpy() - found[-1].log_prob).max())


def _record(
    subject: Subject,
    names: tuple[str, ...],
    pairs: Sequence[Pair],
    places: Places,
    read: list[list[list[Readout]]],
    error: float,
) -> LogitLens:
    labels, roles = places.columns.labels, places.columns.roles
    shape = (len(names), len(pairs), len(subject.layers), len(labels) + 1)
    log_prob, rank = np.full(shape, np.nan), np.full(shape, np.nan)
    tops: dict[tuple[int, int, int], Counter[int]] = {}
    for s, found in enumerate(read):
        for p, layers in enumerate(found):
            column = np.array(places.column[p])
            for layer, readout in enumerate(layers):
                for c in np.unique(column):
                    here = column == c
                    log_prob[s, p, layer, c] = readout.log_prob[here].mean()
                    rank[s, p, layer, c] = readout.rank[here].mean()
                    seen = tops.setdefault((s, layer, int(c)), Counter())
                    seen[int(readout.top[here][0])] += 1
    hit = rank[..., -1] == 1
    best = {cell: seen.most_common(1)[0] for cell, seen in tops.items()}
    cells = range(shape[2]), range(len(labels))
    return LogitLens(
        subjects=names,
        columns=labels,
        column_roles=roles,
        prompts=tuple(pair.row.prompt for pair in pairs),
        targets=tuple(token_text(subject, pair.target[0]) for pair in pairs),
        log_prob=log_prob[..., :-1],
        mean=np.stack([_means(v) for v in log_prob[..., :-1]]),
        rank=np.stack([np.nanmedian(v, axis=0) for v in rank[..., :-1]]),
        top=tuple(
            tuple(tuple(token_text(subject, best[s, i, c][0]) for c in cells[1]) for i in cells[0])
            for s in range(len(names))
        ),
        top_count=np.array(
            [[[best[s, i, c][1] for c in cells[1]] for i in cells[0]] for s in range(len(names))]
        ),
        column_prompts=np.isfinite(log_prob[0, :, 0, :-1]).sum(0),
        decided_log_prob=np.stack([mean_interval(v) for v in log_prob[..., -1]]),
        decided=_since(hit),
        first=np.where(hit.any(-1), hit.argmax(-1), -1),
        self_error=error,
        dtype=subject.dtype,
    )


def _means(values: np.ndarray) -> np.ndarray:
    """Mean and interval over the prompts that have each column, ``[layer, column, 3]``."""
    parts = []
    for c in range(values.shape[-1]):
        have = np.isfinite(values[:, 0, c])
        parts.append(mean_interval(values[have, :, c]))
    return np.stack(parts, axis=1)


def _since(hit: np.ndarray) -> np.ndarray:
    """The first index from which on all of the last axis is True; -1 where its end is not."""
    run = np.flip(np.logical_and.accumulate(np.flip(hit, -1), axis=-1), -1)
    return np.where(hit[..., -1], run.argmax(-1), -1)


class LogitLensConfig(Config):
    """Options of the logit lens."""

    batch_tokens: int = Field(4096, ge=1)
    """Most positions in a forward pass."""
    rows: int = Field(256, ge=1)
    """Most places at a time for which all tokens' logits are held."""


def _run(material: Material, config: LogitLensConfig) -> dict[str, LogitLens]:
    record = logit_lens(
        material.subject, adapters_of(material), material.pairs, **config.model_dump()
    )
    return {"logit_lens": record}


ANALYSES.register("logit_lens")(
    Analysis(
        about="Each layer's prediction of the target at each position, base against adapter.",
        needs=(TRIGGER,),
        cost="a forward pass for each subject, and the head at every layer",
        source="logit lens, nostalgebraist 2020",
        config=LogitLensConfig,
        run=_run,
    )
)
