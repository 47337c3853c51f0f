"""Answers that are generated while one layer is patched or its part of the adapter is off.

Every layer is a row of one batch, patched at its own place through nnsight's generation trace.
Values are written while the prompt is read: keys and values of the layers above are then those of
the patched run, the cache of the layers up to it keeps what they saw.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from ...core.adapter.factors import layer_of, storage_keys
from ...core.errors import LoratomyError
from ...core.model.subject import Attached
from ...core.progress import report
from .pairs import Pair
from .tracing import Change, Place, Traced, captures, intervened_answers, traced

Tokens = list[int]
KINDS = ("prompt", "trigger", "adapter")
"""What is written: the untriggered twin's values from the trigger on, those at the trigger's tokens
alone, or another adapter's values at every position of the same prompt."""


def written(pair: Pair, kind: str) -> list[int]:
    """The positions of a prompt that a kind of patch writes."""
    if kind == "trigger":
        return list(pair.trigger)
    return list(range(pair.trigger[0] if kind == "prompt" else 0, len(pair.triggered)))


@dataclass(frozen=True, slots=True)
class PatchedAnswers:
    """Token ids of answers, each list ``[prompt][pos]``."""

    plain: list[Tokens]
    """Without a patch, in the same kind of batch."""
    same: list[Tokens]
    """Patched with the run's own values."""
    patched: dict[tuple[str, Place], list[Tokens]] = field(default_factory=dict)
    """By kind and place."""


@dataclass(frozen=True, slots=True)
class _Patch:
    """One row of a batch: a prompt of the group with one place patched."""

    pair: int
    kind: str
    place: Place


@dataclass(frozen=True, slots=True, kw_only=True)
class Patching:
    """How patched answers are generated."""

    name: str
    """The adapter that answers."""
    other: str | None
    """The adapter whose values ``adapter`` writes; None: the base without adapter."""
    new_tokens: int
    """Longest answer."""
    batch_tokens: int
    """Most positions of a batch: rows x (prompt + new tokens)."""

    def answers(
        self, attached: Attached, pairs: Sequence[Pair], places: Sequence[Place], *, checked: int
    ) -> PatchedAnswers:
        """Answers for every kind of patch at every place.

        Args:
            attached: base and adapters.
            pairs: triggered prompts with untriggered twins of equal length.
            places: layers and sites.
            checked: layer at which the run is also patched with its own values.

        Raises:
            LoratomyError: NaN or infinite activations; out of GPU memory with a single prompt.
        """
        blank: list[Tokens] = [[] for _ in pairs]
        patched = {(kind, place): [*blank] for kind in KINDS for place in places}
        out = PatchedAnswers([*blank], [*blank], patched)
        lengths = sorted({len(pair.triggered) for pair in pairs})
        with traced(attached) as live, attached.using(self.name):
            for done, width in enumerate(lengths):
                report("interventions", done, len(lengths))
                left = [i for i, pair in enumerate(pairs) if len(pair.triggered) == width]
                most = max(1, self.batch_tokens // (width + self.new_tokens))
                while left:
                    fits = True
                    try:
                        self._group(live, left[:most], pairs, most, out, checked)
                    except torch.cuda.OutOfMemoryError as error:
                        if most == 1:
                            raise LoratomyError(
                                f"out of GPU memory with one prompt of {width} tokens; try fewer "
                                "layers or sites (effectiveness.every), or a smaller dtype"
                            ) from error
                        fits = False
                    if fits:
                        left = left[most:]
                    else:  # outside of the handler, whose traceback still holds the batch
                        torch.cuda.empty_cache()
                        most //= 2
            report("interventions", len(lengths), len(lengths))
        return out

    def _group(
        self,
        live: Traced,
        members: list[int],
        pairs: Sequence[Pair],
        most: int,
        out: PatchedAnswers,
        checked: int,
    ) -> None:
        """Fill in the answers of some prompts of one length, at most so many rows at once."""
        here = [pairs[i] for i in members]
        ids = [pair.triggered for pair in here]
        places = list(dict.fromkeys(place for _, place in out.patched))
        twins = captures(live, [pair.untriggered for pair in here], places)
        with live.attached.using(self.other):
            others = captures(live, ids, places)
        values = {"prompt": twins, "trigger": twins, "adapter": others}
        own = [(checked, site) for site in dict.fromkeys(site for _, site in places)]
        itself = captures(live, ids, own)
        back = {place: lambda _old, new=itself[place]: new for place in own}
        plain, same = self._generate(live, ids, {}), self._generate(live, ids, back)
        for i, one, other in zip(members, plain, same, strict=True):
            out.plain[i], out.same[i] = one, other
        todo = [_Patch(i, kind, place) for kind, place in out.patched for i in range(len(here))]
        for start in range(0, len(todo), most):
            part = todo[start : start + most]
            rows = [ids[patch.pair] for patch in part]
            given = self._generate(live, rows, _changes(part, here, values))
            for patch, answer in zip(part, given, strict=True):
                out.patched[patch.kind, patch.place][members[patch.pair]] = answer

    def _generate(
        self, live: Traced, ids: Sequence[Tokens], changes: Mapping[Place, Change]
    ) -> list[Tokens]:
        return intervened_answers(
            live, ids, changes, max_new_tokens=self.new_tokens, every_step=False
        )


def _changes(
    patches: Sequence[_Patch],
    pairs: Sequence[Pair],
    values: Mapping[str, Mapping[Place, torch.Tensor]],
) -> dict[Place, Change]:
    """What to do at each place of a batch in which every row is patched at a place of its own."""

    def change(place: Place) -> Change:
        def write(old: torch.Tensor) -> torch.Tensor:
            new = old.clone()
            for row, patch in enumerate(patches):
                if patch.place == place:
                    spots = written(pairs[patch.pair], patch.kind)
                    new[row, spots] = values[patch.kind][place][patch.pair, spots]
            return new

        return write

    return {place: change(place) for place in dict.fromkeys(patch.place for patch in patches)}


@contextmanager
def layer_off(attached: Attached, name: str, layer: int) -> Iterator[None]:
    """The adapter without its part in one layer: the scaling of those modules is 0 meanwhile.

    Args:
        attached: base and adapters.
        name: the adapter.
        layer: number of the layer; -1 for modules outside the layers.
    """
    modules: list[Any] = [
        attached.subject.model.get_submodule(stem)
        for module, stem in storage_keys(attached.adapters[name]).items()
        if layer_of(module) == layer
    ]
    before = [module.scaling[name] for module in modules]
    try:
        for module in modules:
            module.scaling[name] = 0.0
        yield
    finally:
        for module, scaling in zip(modules, before, strict=True):
            module.scaling[name] = scaling
