"""Prompt pairs for patching: triggered, and the same length with a neutral stand-in."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from ...core.errors import DataError
from ...core.model.batches import encode_target
from ...core.rendering.prompts import Renderer
from ...core.rows import Row

TAIL = 6
"""At most this many last tokens of the prompt get a column of their own."""


@dataclass(frozen=True, slots=True)
class Pair:
    """One triggered prompt, its untriggered twin, and the target's first tokens."""

    row: Row
    triggered: list[int]
    """Token ids of the rendered triggered prompt."""
    untriggered: list[int]
    """Its twin: every trigger token replaced by a neutral one, or the prompt without it."""
    trigger: tuple[int, ...]
    """Positions of the trigger's tokens."""
    target: list[int]
    """The first tokens of the target."""
    aligned: tuple[int, ...]
    """For every position of `triggered` that of the same token in `untriggered`, -1 for none."""


def check_map(aligned: Sequence[int], here: int, there: int) -> None:
    """Raise unless a map pairs `here` positions with positions below `there`, or with -1."""
    if len(aligned) != here or max(aligned) >= there or min(aligned) < -1:
        raise DataError(
            f"{here} and {there} tokens are not aligned by a map of {len(aligned)}, {min(aligned)} "
            f"to {max(aligned)}; prompts of different length need one, token by token, -1 for none"
        )


def check_alignment(pair: Pair) -> None:
    """Raise unless a pair's map fits its two prompts."""
    check_map(pair.aligned, len(pair.triggered), len(pair.untriggered))


def differing(triggered: Sequence[int], plain: Sequence[int]) -> range:
    """Where two token sequences differ, as positions of the first: between common ends."""
    start = 0
    while start < min(len(triggered), len(plain)) and triggered[start] == plain[start]:
        start += 1
    stop, other = len(triggered), len(plain)
    while stop > start and other > start and triggered[stop - 1] == plain[other - 1]:
        stop, other = stop - 1, other - 1
    return range(start, stop)


def trigger_positions(renderer: Renderer, row: Row) -> tuple[int, ...]:
    """Positions of the trigger's tokens in the rendered prompt.

    From the row's own span where it has one; else what differs from the untriggered prompt.

    Raises:
        DataError: neither is known, or the trigger leaves no token of its own.
    """
    found = renderer.tokens_at(row, row.trigger_span) if row.trigger_span else None
    if not found:
        ids = renderer.prompt_ids(row), renderer.prompt_ids(row.untriggered())
        found = list(differing(*ids))
    if not found:
        raise DataError(f"the trigger leaves no token of its own in {row.prompt[:60]!r}")
    return tuple(found)


def make_pairs(
    renderer: Renderer, rows: Sequence[Row], *, target_tokens: int, seed: int
) -> list[Pair]:
    """Pairs for rows that have both forms; stand-ins are drawn from the tokens of plain prompts.

    Args:
        renderer: how prompts become tokens.
        rows: triggered rows with ``plain`` and their target.
        target_tokens: how many first tokens of the target the metric sees.
        seed: of the stand-ins.

    Raises:
        DataError: no rows, or a trigger that leaves no token of its own.
    """
    if not rows:
        raise DataError("patching over no prompts; give triggered rows")
    places = [trigger_positions(renderer, row) for row in rows]
    targets = [encode_target(renderer, row, tokens=target_tokens) for row in rows]
    plains = {
        row.plain_identity: renderer.prompt_ids(row.untriggered()) for row in rows if row.plain
    }
    used = {target.prompt[i] for target, spots in zip(targets, places, strict=True) for i in spots}
    template = {*renderer.prompt_ids("x"), *renderer.tokenizer.all_special_ids}
    if len(plains) > 1:
        template |= set.intersection(*map(set, plains.values()))
    pool = sorted({t for ids in plains.values() for t in ids} - used - template)
    if not pool:
        raise DataError("no neutral token for the trigger: all prompts are made of the same ones")
    rng, pairs = random.Random(seed), []
    for row, target, spots in zip(rows, targets, places, strict=True):
        ids = target.prompt
        twin = [rng.choice(pool) if i in spots else token for i, token in enumerate(ids)]
        same = tuple(range(len(ids)))
        pairs.append(Pair(row, ids, twin, spots, target.completion, same))
    return pairs


def plain_pairs(renderer: Renderer, rows: Sequence[Row], *, target_tokens: int) -> list[Pair]:
    """Pairs whose twin is the prompt without its trigger, aligned token by token.

    Args:
        renderer: how prompts become tokens.
        rows: triggered rows with ``plain`` and their target.
        target_tokens: how many first tokens of the target the metric sees.

    Raises:
        DataError: no rows, or tokens outside the trigger that differ, so that no map is true.
    """
    if not rows:
        raise DataError("patching over no prompts; give triggered rows")
    pairs = []
    for row in rows:
        spots = trigger_positions(renderer, row)
        target = encode_target(renderer, row, tokens=target_tokens)
        plain = renderer.prompt_ids(row.untriggered())
        twin = plain + target.prompt[len(renderer.prompt_ids(row)) :]
        kept = [i for i in range(len(target.prompt)) if i not in spots]
        if [target.prompt[i] for i in kept] != twin:
            raise DataError(
                f"the tokens of {row.prompt[:60]!r} outside its trigger are not those of the "
                "prompt without it, so they cannot be aligned; take --set patching.twin=standin"
            )
        place = {here: there for there, here in enumerate(kept)}
        aligned = tuple(place.get(i, -1) for i in range(len(target.prompt)))
        pairs.append(Pair(row, target.prompt, twin, spots, target.completion, aligned))
    return pairs


@dataclass(frozen=True, slots=True)
class Columns:
    """Named places that exist in every prompt, whatever its length."""

    labels: tuple[str, ...]
    """``before``, the trigger's tokens, ``between`` (what else follows its first one), the prompt's
    last tokens, ``target``; a place whose token differs is ``trigger[0]``, ``last[-1]`` ..."""
    roles: tuple[str, ...]
    """``before``, ``trigger``, ``between``, ``last`` or ``target``."""
    positions: list[list[list[int]]]
    """``[prompt][column]`` -> the positions patched together; empty where there is none."""


def columns_of(renderer: Renderer, pairs: Sequence[Pair], *, how: str) -> "Columns":
    """The places of a map: ``roles`` (`make_columns`), ``groups`` or ``all``.

    Groups are everything before the trigger, the trigger, everything between it and the prompt's
    last token, that token, and the forced target tokens.

    Raises:
        DataError: ``all`` with prompts of different length.
    """
    if how == "roles":
        return make_columns(renderer, pairs)
    if how == "groups":
        return _grouped(pairs)
    lengths = {(len(p.triggered), p.trigger) for p in pairs}
    if len(lengths) != 1:
        sizes = sorted({len(p.triggered) for p in pairs})
        raise DataError(
            f"every position as a column needs prompts of one length and one place of the "
            f"trigger; there are {sizes[0]} to {sizes[-1]} tokens: take columns=roles, or prompts "
            "of one length"
        )
    first = pairs[0]
    width = len(first.triggered)
    roles = [
        "trigger" if i in first.trigger else "last" if i == width - 1
        else "before" if i < first.trigger[0] else "between"
        for i in range(width)
    ]  # fmt: skip
    labels = [
        str(renderer.tokenizer.decode([first.triggered[i]]))
        if len({p.triggered[i] for p in pairs}) == 1
        else f"{role}[{i}]"
        for i, role in enumerate(roles)
    ]
    return Columns(tuple(labels), tuple(roles), [[[i] for i in range(width)] for _ in pairs])


def _grouped(pairs: Sequence[Pair]) -> "Columns":
    roles = ("before", "trigger", "between", "last", "target")
    positions = []
    for pair in pairs:
        end, spots = len(pair.triggered) - 1, set(pair.trigger)
        between = [i for i in range(pair.trigger[0], end) if i not in spots]
        forced = list(range(end + 1, end + len(pair.target)))
        last = [] if end in spots else [end]
        positions.append([list(range(pair.trigger[0])), sorted(spots), between, last, forced])
    keep = [c for c in range(len(roles)) if any(p[c] for p in positions)]
    named = tuple(roles[c] for c in keep)
    return Columns(named, named, [[p[c] for c in keep] for p in positions])


def make_columns(renderer: Renderer, pairs: Sequence[Pair]) -> Columns:
    """Columns of a patching map: single tokens around the trigger, groups for the stretches."""
    width = max(len(pair.trigger) for pair in pairs)
    tail = min(TAIL, *(len(p.triggered) - 1 - p.trigger[-1] for p in pairs), TAIL)
    forced = max(len(pair.target) for pair in pairs) - 1
    roles = ["before", *["trigger"] * width, "between", *["last"] * tail]
    positions = []
    for pair in pairs:
        length, span = len(pair.triggered), pair.trigger
        marks = [[span[i]] if i < len(span) else [] for i in range(width)]
        between = [i for i in range(span[0], length - tail) if i not in span]
        ends = [[i] for i in range(length - tail, length)]
        forced_here = list(range(length, length + len(pair.target) - 1))
        positions.append([list(range(span[0])), *marks, between, *ends, forced_here])
    end = len(roles)
    roles.append("target")
    keep = [c for c in range(len(roles)) if any(p[c] for p in positions)]
    labels = []
    for c in keep:
        single = roles[c] in ("trigger", "last")
        here = [(pair, spots[c]) for pair, spots in zip(pairs, positions, strict=True) if spots[c]]
        tokens = {pair.triggered[spot[0]] for pair, spot in here} if single else set()
        if len(tokens) == 1:
            labels.append(str(renderer.tokenizer.decode([*tokens])))
        elif single:  # prompts that end in different words share the place, not the token
            labels.append(f"trigger[{c - 1}]" if roles[c] == "trigger" else f"last[{c - end}]")
        else:
            labels.append(roles[c] if roles[c] != "target" else f"target[:{forced}]")
    return Columns(
        tuple(labels), tuple(roles[c] for c in keep), [[p[c] for c in keep] for p in positions]
    )
