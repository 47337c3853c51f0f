"""Runs of different models side by side: profiles over depth, their peaks, agreement."""

from collections import Counter

import numpy as np
import plotly.graph_objects as go

from ....core.records.across import Across, Agreement, Profile
from ...base.document import Section, absent, document, row_head, small, table
from ...base.figure import Figure
from ...base.lines import error_bars, layer_lines
from ...base.quantities import Quantity
from ...base.text import html, interval, number, plural, visible
from ...base.theme import (
    BLUE,
    GREEN,
    GREY,
    MUTED,
    ORANGE,
    PURPLE,
    SKY,
    VERMILLION,
    YELLOW,
    named,
    panels,
    single,
    text,
)

COLOURS = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, YELLOW, GREY)
SYMBOLS = ("circle", "diamond", "square", "triangle-up", "cross", "star", "x", "pentagon")
DASHES = ("solid", "dash", "dot", "dashdot")
DEPTH = "depth (0: embedding, 1: end of the last layer)"


def across_html(record: Across) -> str:
    """Runs side by side as one self-contained HTML document, under the rules of the report."""
    names = ", ".join(run.name for run in record.runs)
    header = f"""<p class="kicker">Loratomy across runs</p>
<h1>{len(record.runs)} runs at equal depth</h1><p><bdi>{html(names)}</bdi></p>"""
    sections = [
        Section("findings", "Findings", _findings(record) + _runs(record)),
        Section("profiles", "Profiles over depth", "", tuple(across_figures(record))),
        Section("agreement", "Agreement", _agreements(record)),
    ]
    return document(f"{names} · Loratomy across runs", header, sections)


def across_figures(record: Across) -> list[Figure]:
    """One figure for each group of profiles, then the peaks and edges of all profiles."""
    profiles = [p for run in record.runs for p in run.profiles]
    groups = dict.fromkeys(p.group for p in profiles)
    return [*(_group(record, group) for group in groups), _marks(record)]


def _of(record: Across, key: str) -> list[tuple[int, Profile]]:
    """Number of the run, and its profile of that key."""
    runs = enumerate(record.runs)
    return [(i, p) for i, run in runs for p in run.profiles if p.key == key]


def _keys(record: Across, group: str = "") -> list[str]:
    profiles = [p for run in record.runs for p in run.profiles]
    return list(dict.fromkeys(p.key for p in profiles if group in ("", p.group)))


def _group(record: Across, group: str) -> Figure:
    """All profiles of one group, a panel each, a line for each run."""
    keys = _keys(record, group)
    found = {key: _of(record, key) for key in keys}
    first = {key: items[0][1] for key, items in found.items()}
    columns = min(2, len(keys))
    rows = -(-len(keys) // columns)
    titles = [text(first[key].title, limit=60) for key in keys]
    gaps = {"vertical_spacing": 0.3 / rows if rows > 1 else 0, "horizontal_spacing": 0.11}
    height = 150 + 270 * rows
    plot = panels(titles, height=height, columns=columns, **gaps)
    for place, key in enumerate(keys):
        row, column = divmod(place, columns)
        for run, profile in found[key]:
            _line(plot, record, run, profile, row=row + 1, col=column + 1)
        unit = text(first[key].unit, limit=48)
        plot.update_yaxes(title_text=unit, row=row + 1, col=column + 1)
    plot.update_xaxes(range=[-0.02, 1.02], dtick=0.25)
    plot.update_xaxes(title_text="depth", row=rows)
    plot.update_yaxes(zeroline=True, zerolinecolor=MUTED)
    # pixels, so that the legend keeps its distance from the panels whatever their number
    above = 1 + 34 / (height - 144)
    plot.update_layout(legend={"y": above}, margin={"t": 96})
    question = first[keys[0]].question
    prompts = {record.runs[i].name: p.n for items in found.values() for i, p in items if p.n}
    counts = "; ".join(f"{name}: {plural(n, 'prompt')}" for name, n in prompts.items())
    measures = {p.measure for p in first.values() if p.measure}
    return Figure(
        id=f"across-{group}",
        title=question,
        plot=plot,
        caption=(
            (f"Measured: {'; '.join(sorted(measures))}. " if measures else "")
            + (f"{counts}. Bands: 95 % intervals. " if counts else "Exact, from the weights. ")
            + f"Depth: {_convention()}"
            + (
                " Each point is the largest over the columns of its role, with the interval of "
                "that column."
                if group.startswith("patching")
                else ""
            )
        ),
        how_to_read=(
            "Compare where the lines rise and fall, not how high they are: a layer of a model with "
            "fewer layers is a larger part of it. Points are layers; nothing is drawn beyond a "
            "model's first and last."
        ),
        alt=" ".join(_alt(record, key) for key in keys),
    )


def _convention() -> str:
    return (
        "of L layers, number l is at (l + 0.5) / L; what enters it at l / L, what leaves it at "
        "(l + 1) / L."
    )


def _alt(record: Across, key: str) -> str:
    items = _of(record, key)
    shown = [f"{record.runs[i].name} {_mark(p)}" for i, p in items]
    return f"{items[0][1].title}, {items[0][1].landmark.kind}: {'; '.join(shown)}."


def _mark(profile: Profile) -> str:
    """Depth and band of the landmark, or why there is none."""
    mark = profile.landmark
    if not np.isfinite(mark.depth):
        return f"none ({mark.how})"
    band = f" {interval(mark.low, mark.high)}" if np.isfinite(mark.low) else ""
    return f"depth {number(mark.depth)}{band}"


def _line(
    plot: go.Figure, record: Across, run: int, profile: Profile, *, row: int, col: int
) -> None:
    of, name = record.runs[run], visible(record.runs[run].name, limit=44)
    values = np.stack([profile.value, profile.low, profile.high], -1)
    layer_lines(
        plot,
        Quantity(f"{text(profile.unit, limit=48)}:", values),
        x=profile.depth,
        places=[
            f"layer {int(layer)}, depth {number(float(depth))}"
            for layer, depth in zip(profile.layer, profile.depth, strict=True)
        ],
        name=f"{name} ({plural(of.layers, 'layer')})",
        look=(COLOURS[run % len(COLOURS)], SYMBOLS[run % len(SYMBOLS)]),
        dash=DASHES[run // len(COLOURS) % len(DASHES)],
        row=row,
        col=col,
    )


def _marks(record: Across) -> Figure:
    """Peak, rise or fall of every profile, run by run, with its band."""
    keys = _keys(record)
    first = {key: _of(record, key)[0][1] for key in keys}
    count = Counter(p.title for p in first.values())
    labels = [
        (f"{p.group.replace('-', ' ')}: " if count[p.title] > 1 else "")
        + f"{p.title}, {p.landmark.kind}"
        for p in first.values()
    ]
    height = 130 + (16 + 14 * len(record.runs)) * len(keys)
    plot = panels([""], height=height)
    step = 0.7 / len(record.runs)
    for i, run in enumerate(record.runs):
        own = {p.key: p for p in run.profiles if np.isfinite(p.landmark.depth)}
        here = [(place, own[key]) for place, key in enumerate(keys) if key in own]
        if not here:
            continue
        colour, symbol = COLOURS[i % len(COLOURS)], SYMBOLS[i % len(SYMBOLS)]
        spans = np.array([[p.landmark.depth, p.landmark.low, p.landmark.high] for _, p in here])
        plot.add_trace(
            go.Scatter(
                x=single(spans[:, 0]),
                y=single([place + (i - (len(record.runs) - 1) / 2) * step for place, _ in here]),
                mode="markers",
                name=text(run.name, limit=40),
                marker={"color": colour, "symbol": symbol, "size": 9},
                error_x=error_bars(spans, colour),
                hovertext=[
                    f"{text(run.name, limit=40)}<br>{text(p.question, limit=90)}"
                    f"<br>{text(p.title, limit=80)}: {_mark(p)}<br>{text(p.landmark.how, limit=80)}"
                    for _, p in here
                ],
                hoverinfo="text",
            )
        )
    axis = named(labels, limit=68) | {"range": [len(keys) - 0.5, -0.5], "showgrid": True}
    plot.update_yaxes(**axis)
    plot.update_xaxes(range=[-0.02, 1.02], dtick=0.25, title_text=DEPTH)
    above = 1 + 12 / (height - 110)
    plot.update_layout(legend={"y": above}, margin={"t": 60})
    return Figure(
        id="across-marks",
        title="Peaks and edges of the profiles",
        plot=plot,
        caption=(
            "Peak: the largest value. Rise: the first, fall: the last place in the residual stream "
            "with half of the largest recovery. Bars: 95 % bands, half a layer of resolution "
            f"included; from a bootstrap over prompts for {_counted(record, 'bootstrap')}, "
            "otherwise all layers whose interval reaches the peak's. Without bars: weights. "
            "Not marked: profiles whose largest value is not surely above a negligible one "
            "(effects and recoveries: a hundredth of the whole)."
        ),
        how_to_read=(
            "Bands that do not overlap: the runs differ in where. Bands that overlap: they may "
            "agree; the wider the bands, the less that means."
        ),
        alt=" ".join(_alt(record, key) for key in keys),
    )


def _counted(record: Across, how: str) -> str:
    found = {p.key for run in record.runs for p in run.profiles if p.landmark.how.startswith(how)}
    return plural(len(found), "profile")


# --- tables ------------------------------------------------------------------------------------


def _findings(record: Across) -> str:
    findings = "".join(f"<li>{html(line)}</li>" for line in record.findings)
    notes = "".join(f"<li>{html(line)}</li>" for line in record.notes)
    nothing = absent("No agreement and no difference is supported by these runs.")
    return (f"<ul>{findings}</ul>" if findings else nothing) + (
        f'<h3>Left out</h3><ul class="small">{notes}</ul>' if notes else ""
    )


def _runs(record: Across) -> str:
    rows = "".join(
        f"<tr>{row_head(run.name)}"
        f"<td><bdi>{html(run.base, limit=120)}</bdi></td>"
        f'<td class="num">{run.layers}<small>{html(run.layers_from)}</small></td>'
        f'<td><code dir="auto">{html(run.trigger, limit=80)}</code></td>'
        f'<td><code dir="auto">{html(run.target, limit=80)}</code></td></tr>'
        for run in record.runs
    )
    return table(("Run", "Base", "Layers", "Trigger", "Target"), rows)


def _agreements(record: Across) -> str:
    titles = {p.key: p for run in record.runs for p in run.profiles}
    pairs = list(dict.fromkeys((a.first, a.second) for a in record.agreements))
    found = {(a.key, a.first, a.second): a for a in record.agreements}
    rows = "".join(
        f'<tr><th scope="row">{html(titles[key].title)}<br><small class="small">'
        f"{html(titles[key].question)}</small></th>"
        + "".join(_cell(found.get((key, *pair))) for pair in pairs)
        + "</tr>"
        for key in _keys(record)
    )
    tested = sum(not a.undefined for a in record.agreements)
    notes = (
        f"Spearman correlation over the layers of the run with fewer, the other interpolated "
        f"between its layers, never beyond them; n: these points. p: how often an unrelated "
        f"profile just as smooth would do as well (signs of its cosine components flipped), at "
        f"least 1 / 2^(n − 2) for n points; "
        f"free p: the same when layers are shuffled, which takes neighbouring layers for "
        f"independent and is too small wherever they are alike. q: p corrected for the "
        f"{plural(tested, 'correlation')} here (Benjamini-Hochberg)."
    )
    heads = [f"{first} · {second}" for first, second in pairs]
    return table(("Profile", *heads), rows) + small(notes)


def _cell(item: Agreement | None) -> str:
    if item is None:
        return '<td class="not-measured">–</td>'
    if item.undefined:
        return f'<td class="not-measured"><small>{html(item.undefined)}</small></td>'
    return (
        f'<td class="num">{number(item.rho, digits=2)}<small>n&nbsp;=&nbsp;{item.n}, '
        f"p&nbsp;{_p(item.p)}, q&nbsp;{_p(item.q)}<br>free p&nbsp;{_p(item.p_free)}</small></td>"
    )


def _p(value: float) -> str:
    return "&lt;&nbsp;0.001" if value < 0.001 else f"=&nbsp;{value:.3f}"
