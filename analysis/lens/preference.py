"""What a whole adapter listens for and writes, token by token."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ...core.adapter.factors import Adapter, kind_of
from ...core.errors import AdapterError
from ...core.model.subject import Subject
from ...core.records.lens import Preference
from .reading import Strength, listeners, listening_strength
from .writing import writers, writing_strength

NAMED = 40
"""Preferred tokens that are named."""


def token_text(subject: Subject, token: int) -> str:
    """A token's text; its raw form where it is no text on its own."""
    tokenizer: Any = subject.renderer.tokenizer
    text = str(tokenizer.decode([int(token)]))
    return text if text.strip("\ufffd") else str(tokenizer.convert_ids_to_tokens(int(token)))


def preferences(
    subject: Subject,
    adapter: Adapter,
    clean: Adapter | None,
    *,
    trigger: Sequence[int],
    target: Sequence[int],
    batch_tokens: int,
) -> tuple[Preference, Preference]:
    """What an adapter listens for and what it writes, with the wanted tokens' places.

    Where it changes nothing that reads, or nothing that writes, the record notes it.

    Args:
        subject: the base, without adapter.
        adapter: what is read.
        clean: a clean adapter to compare with.
        trigger: ids of the trigger's tokens, where it is known.
        target: ids of the targets' first tokens, where they are known.
        batch_tokens: most positions in a forward pass.
    """

    def strength(of: Adapter) -> Strength:
        return listening_strength(subject, of, batch_tokens=batch_tokens)

    def written(of: Adapter) -> Strength:
        return writing_strength(subject, of)

    def readers(of: Adapter) -> list[str]:
        return listeners(subject, of)

    def writing_modules(of: Adapter) -> list[str]:
        return [name for name, _ in writers(subject, of)]

    return (
        _preference(subject, adapter, clean, strength, readers, trigger),
        _preference(subject, adapter, clean, written, writing_modules, target),
    )


def _preference(
    subject: Subject,
    adapter: Adapter,
    clean: Adapter | None,
    strength: Callable[[Adapter], Strength],
    modules: Callable[[Adapter], list[str]],
    wanted: Sequence[int],
) -> Preference:
    try:
        found, undefined = strength(adapter), ""
        kinds = tuple(dict.fromkeys(kind_of(name) for name in modules(adapter)))
    except AdapterError as error:  # other modules may still be read direction by direction
        size = subject.model.get_input_embeddings().weight.shape[0]
        found, undefined, kinds = Strength(np.full(size, np.nan), float("nan")), str(error), ()
    values = found.values
    order = np.argsort(-np.nan_to_num(values, nan=-1.0), kind="stable")
    compared = int(np.isfinite(values).sum())
    rank = np.empty(len(order), dtype=int)
    rank[order] = np.arange(1, len(order) + 1)
    ids = np.array(list(dict.fromkeys(wanted)), dtype=int) if compared else np.empty(0, dtype=int)
    top = order[: min(NAMED, compared)]
    return Preference(
        values=values.astype(np.float32),
        null=found.null,
        clean=_beside(clean, strength),
        tokens=tuple(token_text(subject, i) for i in top),
        ids=top,
        wanted=tuple(token_text(subject, i) for i in ids),
        wanted_ids=ids,
        wanted_ranks=rank[ids],
        compared=compared,
        kinds=kinds,
        undefined=undefined,
    )


def _beside(clean: Adapter | None, strength: Callable[[Adapter], Strength]) -> np.ndarray | None:
    """The clean adapter's strengths; None where it has none to compare."""
    if clean is None:
        return None
    try:
        return strength(clean).values.astype(np.float32)
    except AdapterError:
        return None
