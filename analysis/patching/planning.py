"""What the options of a sweep come to: its runs and their alignment, places, layers and memory."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from ...core.config import Config
from ...core.errors import DataError, LoratomyError
from ...core.model.subject import Subject
from .engine.batching import MemoryBudget, budget
from .engine.runs import PatchRun, Sweep
from .metrics import METRICS, token_of
from .pairs import Columns, Pair, check_alignment, columns_of

Written = Annotated[str, BeforeValidator(lambda v: str(v) if isinstance(v, int | float) else v)]
"""A text, also where it was read as a number."""


class PatchingConfig(Config):
    """Options of a patching sweep."""

    pairs: str = "prompt,adapter"
    """Comma-separated: prompt (untriggered into triggered), adapter (clean adapter into poisoned,
    or the base where there is none), base (base into poisoned)."""
    sites: str = "resid_pre,attn_out,mlp_out"
    """Of resid_pre, resid_mid, resid_post, attn_out, mlp_out; or z, or lora, or experts,router."""
    direction: Literal["denoising", "noising"] = "denoising"
    """denoising (clean values into the corrupted run) or noising (the reverse)."""
    metric: str = "log_prob"
    """log_prob, probability, logit_difference or kl."""
    against: Written = ""
    """For logit_difference: the text of one token that competes with the target's first."""
    layers: Written = ""
    """Layers, e.g. 0-3,7; empty: all."""
    columns: Literal["roles", "groups", "all"] = "roles"
    """Positions: roles (single tokens around the trigger), groups (four groups) or all (every
    position; prompts of one length)."""
    twin: Literal["standin", "plain"] = "standin"
    """The untriggered prompt: neutral tokens in the trigger's place, or the prompt without it,
    aligned token by token (the trigger's own tokens then have no counterpart)."""
    memory: float | None = Field(None, gt=0)
    """GiB that patched runs may take; none: half of what is free."""


@dataclass(frozen=True, slots=True)
class PlannedSweep:
    """What the options of a sweep come to on a model and its pairs."""

    what: Sweep
    """The two runs, their prompts and the metric."""
    columns: Columns
    """The places of the map."""
    layers: list[int]
    """Layers, ascending."""
    memory: MemoryBudget
    """What patched runs may take."""
    metric: str
    """The metric in words."""


def planned(
    subject: Subject,
    pairs: Sequence[Pair],
    clean: str | None,
    poisoned: str,
    setting: str,
    config: PatchingConfig,
) -> PlannedSweep:
    """The sweep that the options name; arguments and errors as of `patch`."""
    if not pairs:
        raise DataError("patching over no prompts; give triggered rows")
    metric = METRICS[config.metric]
    longest = max(len(p.triggered) + len(p.target) - 1 for p in pairs)
    if subject.limit is not None and longest > subject.limit:
        raise DataError(
            f"a prompt with its target has {longest} tokens, the model's context {subject.limit}; "
            "shorten it or leave it out"
        )
    layers = layer_numbers(config.layers, len(subject.layers))
    columns = columns_of(subject.renderer, pairs, how=config.columns)
    against = None
    if config.against:
        against = token_of(subject.renderer, config.against)
        if config.metric != "logit_difference" or any(p.target[0] == against for p in pairs):
            raise DataError(
                f"against={config.against!r} is for metric=logit_difference and a token other than "
                f"the target's first; the metric is {config.metric}"
            )
    what = sweep_of(pairs, columns, clean, poisoned, setting, config, against)
    words = metric.about.format(n=max(len(p.target) for p in pairs))
    return PlannedSweep(what, columns, layers, budget(subject, config.memory), words)


def layer_numbers(text: str, depth: int) -> list[int]:
    """Layer numbers written as ``0-3,7``; all of them where nothing is written.

    Raises:
        LoratomyError: not a number, or a layer that does not exist.
    """
    out: list[int] = []
    for part in (p.strip() for p in text.split(",") if p.strip()):
        first, _, last = (p.strip() for p in part.partition("-"))
        ends = first, last or first
        if not all(end.isdigit() for end in ends) or int(ends[0]) > int(ends[1]):
            raise LoratomyError(f"layers {text!r}: write numbers and ranges, such as 0-3,7")
        out += range(int(ends[0]), int(ends[1]) + 1)
    if wrong := [layer for layer in out if layer >= depth]:
        raise LoratomyError(
            f"no layer {wrong[0]}: this model has {depth}, numbered 0 to {depth - 1}"
        )
    return sorted(set(out)) or list(range(depth))


def run_names(setting: str, clean: str | None, poisoned: str) -> tuple[str, str]:
    """The clean and the corrupted run of a setting, in words."""
    if setting == "prompt":
        return f"{poisoned} adapter, untriggered prompt", f"{poisoned} adapter, triggered prompt"
    return f"{clean} adapter" if clean else "base without adapter", f"{poisoned} adapter"


def sweep_of(
    pairs: Sequence[Pair],
    columns: Columns,
    clean: str | None,
    poisoned: str,
    setting: str,
    config: PatchingConfig,
    against: int | None,
) -> Sweep:
    """Source, destination and alignment of a sweep in the direction of its options.

    Raises:
        DataError: a map that does not fit its two prompts.
    """
    between = setting == "prompt"
    for pair in pairs:
        check_alignment(pair)
    clean_run = PatchRun(
        adapter=poisoned if between else clean,
        prompts=[p.untriggered if between else p.triggered for p in pairs],
    )
    corrupted_run = PatchRun(adapter=poisoned, prompts=[p.triggered for p in pairs])
    maps = [list(p.aligned) if between else list(range(len(p.triggered))) for p in pairs]
    spots = columns.positions
    if config.direction == "denoising":
        source, into = clean_run, corrupted_run
    else:
        source, into = corrupted_run, clean_run
        lengths = [len(prompt) for prompt in clean_run.prompts]
        inverse = [_inverse(m, n) for m, n in zip(maps, lengths, strict=True)]
        spots = [
            [_moved(cell, m, n) for cell in row]
            for row, m, n in zip(spots, maps, lengths, strict=True)
        ]
        maps = inverse
    return Sweep(
        source=source,
        into=into,
        targets=[p.target for p in pairs],
        columns=spots,
        aligned=maps,
        reference="source" if config.direction == "denoising" else "into",
        metric=config.metric,
        against=against,
    )


def _inverse(aligned: Sequence[int], length: int) -> list[int]:
    """``[position of the other run]`` -> position here, -1 for none."""
    out = [-1] * length
    for here, there in enumerate(aligned):
        if there >= 0:
            out[there] = here
    return out


def _moved(cell: Sequence[int], aligned: Sequence[int], length: int) -> list[int]:
    """Positions of the triggered prompt as those of the other run; forced tokens keep their place
    after the prompt's end. Empty when any of them has no counterpart."""
    ends = len(aligned)
    out = [aligned[i] if i < ends else i - ends + length for i in cell]
    return [] if any(i < 0 for i in out) else out
