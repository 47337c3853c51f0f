"""Copies of base weights beside an adapter's factors: nothing but a copy may be there."""

from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path

import torch

from ..errors import AdapterError

Weights = Callable[[str], torch.Tensor | None]
"""The base's parameter of a name, ``model.embed_tokens.weight``; None where it has none."""
AT_ONCE = 4096
"""Rows compared at a time."""


def check_copies(folder: Path, copies: Mapping[str, torch.Tensor], base: Weights | None) -> None:
    """Raise unless every parameter that is stored whole is the base's own, bit by bit.

    PEFT stores a head or embedding whole when it has factors, was resized, or is among
    `modules_to_save`; in the last two cases it may be another one.

    Args:
        folder: of the adapter.
        copies: stored parameters by their names in the base.
        base: what the base has; None: unknown.

    Raises:
        AdapterError: one differs (how many rows, which), has another shape, or is not in the base.
    """
    for name, copy in copies.items():
        own = base(name) if base is not None else None
        stem = name.rsplit(".", 1)[0]
        if own is None:
            why = (
                "the base has no such weight" if base is not None else "no base to compare it with"
            )
            raise AdapterError(
                f"{folder} holds the whole weight {name} beside its factors, and {why}; to leave "
                f"it out, add --ignore-module {stem}"
            )
        if differs := _difference(copy, own.detach()):
            raise AdapterError(
                f"{folder} holds the whole weight {name} beside its factors, and it is not the "
                f"base's: {differs}. What it changes is no LoRA; to go on without it, and what it "
                f"does, add --ignore-module {stem}"
            )


def check_whole(
    folder: Path, named: Iterable[str], copies: Iterable[str], ignore: Collection[str]
) -> None:
    """Raise unless every module that the settings name as saved whole is there.

    Raises:
        AdapterError: one is not.
    """
    held = [f".{name.rsplit('.', 1)[0]}." for name in copies]
    for module in named:
        if module not in ignore and not any(f".{module}." in name for name in held):
            raise AdapterError(
                f"{folder} is incomplete: modules_to_save names {module}, but no tensor of it is "
                f"stored; to go on without it, add --ignore-module {module}"
            )


def _difference(copy: torch.Tensor, own: torch.Tensor) -> str:
    """What differs, in words; empty where the two are equal in the coarser of their formats."""
    if copy.dim() != own.dim() or copy.shape[1:] != own.shape[1:]:
        return f"{tuple(copy.shape)} against {tuple(own.shape)}"
    if not own.is_floating_point():
        return f"the base's is packed ({str(own.dtype).removeprefix('torch.')}), not comparable"
    rows = min(len(copy), len(own))
    changed = _changed_rows(copy[:rows], own[:rows])
    words = []
    if len(copy) != len(own):
        more = "more" if len(copy) > len(own) else "fewer"
        words.append(
            f"it has {len(copy):,} rows, {abs(len(copy) - len(own)):,} {more} than the base's "
            f"{len(own):,} (a vocabulary that was resized in training)"
        )
    if len(changed):
        shown = ", ".join(map(str, changed[:5].tolist())) + " ..." * (len(changed) > 5)
        words.append(f"{len(changed):,} of {rows:,} rows differ (row {shown})")
    elif words:
        words.append("the rows that both have are equal")
    return "; ".join(words)


def _changed_rows(copy: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    """Numbers of the rows that differ, in the format in which the copy is stored.

    Where the base is held in a coarser one (bfloat16 on a GPU), in that one.
    """
    finer = torch.finfo(copy.dtype).eps < torch.finfo(own.dtype).eps
    found = []
    for start in range(0, len(copy), AT_ONCE):
        one, other = copy[start : start + AT_ONCE], own[start : start + AT_ONCE].cpu()
        if finer:
            one = one.to(other.dtype)
        away = one != other.to(one.dtype)
        found.append(away.reshape(len(away), -1).any(1).nonzero()[:, 0] + start)
    return torch.cat(found) if found else torch.empty(0, dtype=torch.long)
