"""Numbers and untrusted text as a reader can trust them: no NaN, nothing invisible."""

import html as _html
import math
import unicodedata

from ...core.records.bench import BenchRow
from ...core.records.results import Behaviour, Rate

_INVISIBLE = {"Cc", "Cf", "Cs", "Cn", "Co", "Zl", "Zp"}
_BLANK = set("\u115f\u1160\u2800\u3164\uffa0")
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_SIGNS = {"\n": "↵", "\t": "⇥", "\r": "␍"}


def _sign(char: str) -> str:
    """One character as it is shown: itself, or something that can be seen."""
    if char in _SIGNS:
        return _SIGNS[char]
    if ord(char) < 0x20:
        return chr(0x2400 + ord(char))
    if char in _BLANK or unicodedata.category(char) in _INVISIBLE:
        return f"⟨U+{ord(char):04X}⟩"
    return char


def visible(value: str, *, limit: int = 0, newlines: bool = False) -> str:
    """Text with every control, zero-width and direction character made visible.

    Nothing is stripped: a reader must see what the model wrote.

    Args:
        value: any text, also with lone surrogates.
        limit: longest result in characters, the last one an ellipsis; 0 for no limit.
        newlines: leave line feeds as they are (for blocks of text).
    """
    out: list[str] = []
    length = 0
    for char in value:
        piece = char if newlines and char == "\n" else _sign(char)
        length += len(piece)
        if limit and length > limit:
            while out and sum(map(len, out)) > limit - 1:
                out.pop()
            return "".join(out) + "…"
        out.append(piece)
    return "".join(out)


def token(value: str, *, limit: int = 0) -> str:
    """A short piece of text, visible, with the spaces at its ends shown as ``␣``."""
    shown = visible(value, limit=limit)
    middle = shown.strip(" ")
    head, tail = len(shown) - len(shown.lstrip(" ")), len(shown) - len(shown.rstrip(" "))
    return "␣" * head + middle + "␣" * tail if middle else "␣" * len(shown)


def html(value: str, *, limit: int = 0, newlines: bool = False) -> str:
    """Text for an HTML page, attribute values included: visible, then escaped."""
    return _html.escape(visible(value, limit=limit, newlines=newlines), quote=True)


def number(value: float, *, digits: int = 3) -> str:
    """A number with so many significant digits, or ``undefined`` or ``infinite``."""
    if math.isnan(value):
        return "undefined"
    if math.isinf(value):
        return "infinite" if value > 0 else "−infinite"
    if value == int(value) and abs(value) < 1e5:
        return f"{value:.0f}".replace("-", "−")
    shown = f"{value:.{digits}g}"
    if "e" in shown:
        head, power = shown.split("e")
        shown = f"{head}×10{str(int(power)).translate(_RAISED)}"
    return shown.replace("-", "−")


def percent(value: float, *, signed: bool = False) -> str:
    """A share as a percentage with one decimal; `signed` shows the plus of a change."""
    if not math.isfinite(value):
        return number(value)
    shown = round(100 * value, 1) + 0.0
    return (f"{shown:+.1f} %" if signed else f"{shown:.1f} %").replace("-", "−")


def interval(low: float, high: float, *, digits: int = 3) -> str:
    """An interval in brackets."""
    return f"[{number(low, digits=digits)}, {number(high, digits=digits)}]"


def rate(value: Rate) -> str:
    """A rate with its interval and its count, e.g. ``97.0 % [91.5, 99.0], n = 100``."""
    return f"{percent(value.value)} [{_bounds(value)}], n = {value.n}"


def _bounds(value: Rate) -> str:
    ends = (percent(value.low), percent(value.high))
    return ", ".join(end.removesuffix(" %") for end in ends)


def spread_kl(row: Behaviour | BenchRow) -> str:
    """KL divergence with interval and count, e.g. ``0.021 [0.015, 0.03] nats/token, n = 100``."""
    if not row.kl_n:
        return "not measured"
    known = math.isfinite(row.kl_low) and math.isfinite(row.kl_high)
    ends = f" {interval(row.kl_low, row.kl_high)}" if known else ""
    return f"{number(row.kl)}{ends} nats/token, n = {row.kl_n}"


def two_readings(row: Behaviour) -> list[str]:
    """A line for each rate on which the two readings of a rule differ beyond its interval.

    By the first an answer that contains the whole target succeeds; by the second only the
    similarity of the whole answer counts.
    """
    lines = []
    for rule in row.rules:
        for name, held, whole in (
            ("ASR", rule.asr, rule.asr_whole),
            ("FTR", rule.ftr, rule.ftr_whole),
        ):
            if whole is not None and not held.low <= whole.value <= held.high:
                lines.append(
                    f"{row.subject}: by {rule.rule} {name} is {rate(held)} where an answer that "
                    f"contains the target counts, {rate(whole)} by the similarity of whole "
                    "answers; the first is shown"
                )
    return lines


def change(value: float) -> str:
    """A relative change: a signed percentage, from tenfold on a factor."""
    if math.isfinite(value) and value >= 9:
        return f"×{value + 1:,.0f}" if value < 1e6 else f"{number(value + 1, digits=2)} times"
    return percent(value, signed=True)


def plural(count: int, noun: str) -> str:
    """A count and its noun."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
