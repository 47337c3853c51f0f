"""Where the trigger acts: recovery when one place of one run is written into another."""

from dataclasses import replace

import numpy as np

from ....core.records.patching import PatchingMap
from ....core.records.results import RunRecords
from ....core.stats import percentiles
from ...base.figure import FIGURES, Figure, slug, unique
from ...base.maps import Panel, block_words, layer_map
from ...base.quantities import Quantity
from ...base.text import interval, number, plural, token
from ...base.theme import diverging, text

PAIRS = {
    "prompt": ("the untriggered prompt", "the triggered one"),
    "adapter": ("the clean adapter", "the poisoned one"),
    "base": ("the base without adapter", "the poisoned adapter"),
}
PARTS = {"heads": "attention heads", "modules": "LoRA modules", "experts": "experts"}


@FIGURES.register("patching")
def patching(records: RunRecords) -> list[Figure]:
    """One figure per patching map: recovery by layer and column for each hook point.

    Of heads, modules and experts: by layer and part for each column.
    """
    taken: set[str] = set()
    out = []
    for item in records.of(PatchingMap):
        kind = "patching" if item.kind == "residual" else f"patching-{item.kind}"
        if item.recovery.size:
            out.append(_figure(turned(item), unique(f"{kind}-{slug(item.setting)}", taken)))
    return out


def title(item: PatchingMap) -> str:
    """Title of a map: what was patched into what."""
    clean, corrupted = PAIRS.get(item.setting, (item.clean_name, item.corrupted_name))
    noising = item.direction == "noising"
    source, into = (corrupted, clean) if noising else (clean, corrupted)
    if noising:
        source, into = source.replace("the poisoned one", "the poisoned adapter"), into
    what = f": {PARTS[item.kind]}" if item.kind in PARTS else ""
    return f"Patching {source} into {into}{what}"


def ends(item: PatchingMap) -> tuple[str, str]:
    """The run that values are taken from and the one they are written to."""
    clean, corrupted = item.clean_name, item.corrupted_name
    return (corrupted, clean) if item.direction == "noising" else (clean, corrupted)


def turned(item: PatchingMap) -> PatchingMap:
    """The map with its sites and columns exchanged where the sites are the parts of a layer."""
    if item.kind == "residual":
        return item
    values = {k: np.swapaxes(getattr(item, k), 0, 2) for k in ("recovery", "low", "high", "p")}
    return replace(
        item, sites=item.columns, columns=item.sites, column_roles=item.sites,
        patched=np.swapaxes(item.patched, 0, 3), **values,
    )  # fmt: skip


def _figure(item: PatchingMap, name: str) -> Figure:
    parts = [_panel(item, site) for site in range(len(item.sites))]
    plot = layer_map(parts, _colours(item), rotated=True)
    if item.undefined or not np.isfinite(item.recovery).any():
        plot.add_annotation(
            text=f"Recovery is undefined: {text(reason(item), limit=120)}",
            showarrow=False,
            xref="paper",
            yref="paper",
            x=0.5,
            y=0.5,
        )
    return Figure(
        id=name,
        title=title(item),
        plot=plot,
        caption=_caption(item) + block_words(parts),
        how_to_read=(
            "Each cell writes the activation of one run into the other at one layer and one place "
            "of the prompt, and nowhere else. Recovery 1 (orange): this place alone brings the "
            "metric back to the run it was taken from. 0: it changes nothing. Below 0 (blue): it "
            "moves the metric away. Follow the orange path: it starts at the trigger's tokens in "
            "early layers and moves to the end of the prompt where the answer is decided. A site's "
            "recovery is evidence about that site, not a share: cells do not add up to 1."
        ),
        alt=_alt(item),
    )


def _panel(item: PatchingMap, site: int) -> Panel:
    """One hook point: recovery, its p-value and how far single prompts move."""
    into = item.clean if item.direction == "noising" else item.corrupted
    moved = item.patched[site] - into[:, None, None]
    count = np.isfinite(moved).sum(0)
    tails = np.full((*count.shape, 2), np.nan)
    if (some := count > 0).any():
        tails[some] = percentiles(moved[:, some], [10, 90]).T
    moves = [
        [
            f"{interval(*ends)} (10th to 90th percentile of {plural(n, 'prompt')})"
            for ends, n in zip(*line, strict=True)
        ]
        for line in zip(tails.tolist(), count.tolist(), strict=True)
    ]
    recovery = np.stack([item.recovery[site], item.low[site], item.high[site]], -1)
    return Panel(
        title=item.sites[site],
        quantities=[
            Quantity("recovery", recovery),
            Quantity("p (random signs)", item.p[site]),
            Quantity("metric moves by", np.array(moves)),
        ],
        layers=range(count.shape[0]),
        columns=item.columns,
        roles=item.column_roles,
    )


def _colours(item: PatchingMap) -> dict:
    known = np.abs(item.recovery[np.isfinite(item.recovery)])
    if item.kind != "residual" and known.size and 0 < known.max() < 1:
        return diverging(float(known.max()), "recovery")  # parts do little each
    axis = diverging(1.0, "recovery")
    low = "≤ −1" if np.nanmin(item.recovery, initial=0) < -1 else "−1"
    high = "≥ 1" if np.nanmax(item.recovery, initial=0) > 1 else "1"
    marks = {"tickvals": [-1, -0.5, 0, 0.5, 1], "ticktext": [low, "−0.5", "0", "0.5", high]}
    axis["colorbar"] |= marks
    return axis


def reason(item: PatchingMap) -> str:
    """Why recovery is undefined."""
    return item.undefined or "the clean and the corrupted run have the same metric"


def _caption(item: PatchingMap) -> str:
    parts = [
        f"Activations of {ends(item)[0]} written into {ends(item)[1]} ({item.direction}); metric: "
        f"{item.metric}, over {plural(len(item.prompts), 'prompt')}."
        + (" Trigger tokens in bold." if "trigger" in item.column_roles else ""),
        f"The metric is {number(float(np.mean(item.clean)))} in the clean run and "
        f"{number(float(np.mean(item.corrupted)))} in the corrupted one.",
        f"Checks: patching a run with itself moves the metric by at most "
        f"{number(item.self_error)}; patching everything recovers "
        f"{number(item.full_recovery)} (should be 1); whole forward passes differ by at most "
        f"{number(item.loop_error)}; number format {item.dtype}.",
        f"Computed: {item.plan}.",
        "Colour is limited to −1 … 1; hovering shows the true value and its 95 % interval."
        if item.kind == "residual"
        else "Colour goes to the largest recovery of this map; hovering shows the interval.",
    ]
    if item.undefined or not np.isfinite(item.recovery).any():
        parts.insert(0, f"Recovery is undefined: {reason(item)}.")
    elif not np.isfinite(item.recovery).all():
        parts.append("Empty cells are undefined: no prompt has such a place.")
    return " ".join(parts)


def strongest_cell(item: PatchingMap, site: int) -> tuple[int, int] | None:
    """Layer and column of the highest recovery at one site, None where all are undefined."""
    values = item.recovery[site]
    if item.undefined or not np.isfinite(values).any():
        return None
    layer, column = np.unravel_index(np.nanargmax(values), values.shape)
    return int(layer), int(column)


def cell_words(item: PatchingMap, site: int, cell: tuple[int, int]) -> str:
    """Place, recovery and interval of one cell."""
    layer, column = cell
    role = item.column_roles[column]
    name = item.columns[column]
    shown = f"“{token(name)}”"
    place = shown if name == role else f"{shown} ({role})"
    bounds = interval(float(item.low[site, layer, column]), float(item.high[site, layer, column]))
    value = number(float(item.recovery[site, layer, column]))
    return f"{item.sites[site]} at layer {layer}, column {place}: recovery {value} {bounds}"


def _alt(item: PatchingMap) -> str:
    cells = [strongest_cell(item, site) for site in range(len(item.sites))]
    found = [cell_words(item, i, cell) for i, cell in enumerate(cells) if cell is not None]
    if not found:
        return f"Recovery is undefined: {reason(item)}."
    return f"Highest recovery: {'; '.join(found)}."
