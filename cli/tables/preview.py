"""What a dry run shows: the modules, the size, the effect."""

import math
from typing import TYPE_CHECKING, Any

from ...core.console import out, say
from ..attacks import table

if TYPE_CHECKING:
    from ...unlearning.preview import Effect, Preview


def show(found: "Preview") -> None:
    """A preview on stdout as tables, with what it leaves open on stderr."""
    out.print(found.summary, markup=False, highlight=False)
    if found.modules:
        rows = [
            (
                "–" if m.layer < 0 else str(m.layer),
                m.module,
                "–" if m.named is None else f"{m.named} of {m.directions}",
                f"{m.share:.1%}",
            )
            for m in found.modules
        ]
        heads = ("layer", "module", "cut or scaled", "norm")
        out.print(table("what would change", heads, rows))
    out.print(_size(found), markup=False, highlight=False)
    heads = ("on calibration rows", "n", "without", "with", "gradients' estimate")
    out.print(table("effect, measured without generation", heads, [*map(_row, found.effects)]))
    if any(e.estimate is not None for e in found.effects):
        out.print(
            "the estimate is of first order (target) and by diagonal Fisher information (clean), "
            "at the adapter without the edit: unreliable for large cuts"
        )
    for line in found.missing:
        say(f"note: {line}")


def _size(found: "Preview") -> str:
    parts = [
        f"norm of the change: {found.change_norm:.1%} of the adapter's (modules add up in squares)"
    ]
    if found.cut is not None:
        scaled = f", {found.scaled} scaled" if found.scaled else ""
        parts.insert(0, f"{found.cut} of {found.directions} directions cut{scaled}")
    before, after = (_bytes(n) for n in (found.bytes_before, found.bytes_after))
    return "\n".join([*parts, f"size: {before} -> {after}"])


def _bytes(number: int) -> str:
    step = min(int(math.log2(max(number, 1)) // 10), 3)
    return f"{number / 1024**step:.4g} {('B', 'KiB', 'MiB', 'GiB')[step]}"


def _row(effect: "Effect") -> tuple[str, ...]:
    values: list[Any] = [effect.before, effect.after, effect.estimate]
    shown = ("–" if v is None else f"{v:.4g}" for v in values)
    return (effect.name, str(effect.n), *shown)
