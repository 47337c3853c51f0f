"""Where the trigger acts: recovery when one place of one run is written into another."""

from dataclasses import replace

import numpy as np
import plotly.graph_objects as go

from ....core.records.patching import PatchingMap
from ....core.records.results import RunRecords
from ...base.figure import FIGURES, Figure, slug, unique
from ...base.text import interval, number, plural, token
from ...base.theme import diverging, named, panels, single, text

MOST_CELLS = 250_000
"""Above this many cells a map is drawn in blocks."""
MOST_TEXTS = 50_000
"""Above this many cells the hover shows the value alone."""

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
    """What was patched into what, in words."""
    clean, corrupted = PAIRS.get(item.setting, (item.clean_name, item.corrupted_name))
    noising = item.direction == "noising"
    source, into = (corrupted, clean) if noising else (clean, corrupted)
    if noising:
        source, into = source.replace("the poisoned one", "the poisoned adapter"), into
    what = f": {PARTS[item.kind]}" if item.kind in PARTS else ""
    return f"Patching {source} into {into}{what}"


def ends(item: PatchingMap) -> tuple[str, str]:
    """The run that values are taken from and the one they are written to, in words."""
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
    sites, layers, columns = item.recovery.shape
    block = block_sizes(layers, columns, MOST_CELLS // sites)
    titles = [text(site) for site in item.sites]
    plot = panels(titles, height=_height(layers), shared_yaxes=True, horizontal_spacing=0.03)
    for index in range(sites):
        plot.add_trace(_heatmap(item, index, block), row=1, col=index + 1)
    labels = named(item.columns, most=40, limit=16)
    labels["ticktext"] = [
        label if item.columns[i] == item.column_roles[i] else f"{label} · {item.column_roles[i]}"
        for i, label in zip(labels["tickvals"], labels["ticktext"], strict=True)
    ]
    labels["ticktext"] = [
        f"<b>{label}</b>" if item.column_roles[i] == "trigger" else label
        for i, label in zip(labels["tickvals"], labels["ticktext"], strict=True)
    ]
    plot.update_xaxes(**labels, tickangle=-50)
    every = max(1, -(-layers // 16))
    plot.update_yaxes(range=[-0.5, layers - 0.5], dtick=every, tick0=0, showgrid=False)
    plot.update_yaxes(title_text="layer", row=1, col=1)
    plot.update_layout(coloraxis=_colours(item), margin={"t": 44})
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
        caption=_caption(item, block),
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


def block_sizes(layers: int, columns: int, most: int) -> tuple[int, int]:
    """Rows and columns joined into one drawn cell so that at most `most` cells are drawn."""
    high = wide = 1
    while -(-layers // high) * -(-columns // wide) > most:
        if layers / high > columns / wide:
            high += 1
        else:
            wide += 1
    return high, wide


def block_reduce(values: np.ndarray, block: tuple[int, int]) -> np.ndarray:
    """The value of largest magnitude (with its sign) of each block; NaN where all are NaN."""
    if block == (1, 1):
        return values
    (high, wide), (rows, columns) = block, values.shape
    padded = np.full((-(-rows // high) * high, -(-columns // wide) * wide), np.nan)
    padded[:rows, :columns] = values
    parts = padded.reshape(padded.shape[0] // high, high, padded.shape[1] // wide, wide)
    flat = parts.swapaxes(1, 2).reshape(parts.shape[0], parts.shape[2], high * wide)
    best = np.argmax(np.where(np.isnan(flat), -1.0, np.abs(flat)), axis=2)
    return np.take_along_axis(flat, best[..., None], axis=2)[..., 0]


def _heatmap(item: PatchingMap, site: int, block: tuple[int, int]) -> go.Heatmap:
    values = block_reduce(item.recovery[site], block)
    few = item.recovery.size <= MOST_TEXTS
    return go.Heatmap(
        z=single(values),
        x0=(block[1] - 1) / 2,
        dx=block[1],
        y0=(block[0] - 1) / 2,
        dy=block[0],
        hovertext=_hover(item, site) if few else None,
        hoverinfo="text" if few else "y+z",
        hoverongaps=False,
        coloraxis="coloraxis",
        meta={"link": "layer", "layers": list(range(item.recovery.shape[1]))} if few else None,
    )


def _hover(item: PatchingMap, site: int) -> list[list[str]]:
    """What each cell says: its place, the true value, the interval and the spread over prompts."""
    into = item.clean if item.direction == "noising" else item.corrupted
    moved = item.patched[site] - into[:, None, None]
    count = np.isfinite(moved).sum(0)
    tails = np.full((2, *count.shape), np.nan)
    some = count > 0
    if some.any():
        tails[:, some] = np.nanpercentile(moved[:, some], [10, 90], axis=0)
    places = [
        f"{text(c, limit=40)}" + ("" if c == r else f" ({r})")
        for c, r in zip(item.columns, item.column_roles, strict=True)
    ]
    rows = []
    for layer in range(count.shape[0]):
        row = []
        for column, place in enumerate(places):
            cell = (site, layer, column)
            bounds = interval(float(item.low[cell]), float(item.high[cell]))
            spread = interval(float(tails[0, layer, column]), float(tails[1, layer, column]))
            row.append(
                f"{text(item.sites[site])}, layer {layer}, {place}"
                f"<br>recovery {number(float(item.recovery[cell]))} {bounds}"
                f"<br>p {number(float(item.p[cell]))} (random signs)"
                f"<br>metric moves by {spread} (10th to 90th percentile of "
                f"{plural(int(count[layer, column]), 'prompt')})"
            )
        rows.append(row)
    return rows


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
    """Why recovery is undefined, in words."""
    return item.undefined or "the clean and the corrupted run have the same metric"


def _caption(item: PatchingMap, block: tuple[int, int]) -> str:
    parts = [
        f"Values of {ends(item)[0]} written into {ends(item)[1]} ({item.direction}); metric: "
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
    if block != (1, 1):
        parts.append(
            f"Drawn in blocks of {block[0]} × {block[1]} cells, each showing its value of largest "
            "magnitude; the full matrix is in the run's records."
        )
    return " ".join(parts)


def strongest_cell(item: PatchingMap, site: int) -> tuple[int, int] | None:
    """Layer and column of the highest recovery at one site, None where all are undefined."""
    values = item.recovery[site]
    if item.undefined or not np.isfinite(values).any():
        return None
    layer, column = np.unravel_index(np.nanargmax(values), values.shape)
    return int(layer), int(column)


def cell_words(item: PatchingMap, site: int, cell: tuple[int, int]) -> str:
    """One cell in words: place, recovery and interval."""
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


def _height(layers: int) -> int:
    return int(min(820, 210 + 24 * max(layers, 6)))
