"""How a cut varies with the calibration data, and what stays uncertain of it."""

import numpy as np
import plotly.graph_objects as go

from ...core.records.results import Operation, RunRecords, Stability
from ..base.figure import FIGURES, Figure, slug, unique
from ..base.grid import kind_of
from ..base.quantities import written
from ..base.text import number, percent, plural
from ..base.theme import magnitude, panels, single, text


@FIGURES.register("stability")
def stability(records: RunRecords) -> list[Figure]:
    """One figure per operation that was repeated on other samples of its calibration data."""
    taken: set[str] = set()
    return [
        _figure(item, item.stability, unique(f"stability-{slug(item.subject)}", taken))
        for item in records.operations
        if item.stability is not None
    ]


def _figure(item: Operation, found: Stability, name: str) -> Figure:
    seeds = [f"seed {s}" for s in found.seeds]
    plot = panels(["directions cut, by kind of module", "cosine of what is removed"], height=340)
    kinds = list(dict.fromkeys(kind_of(m) for m in item.modules))
    for kind in kinds:
        here = [kind_of(m) == kind for m in item.modules]
        cut = found.by_module[:, here].sum(1)
        plot.add_trace(
            go.Bar(
                x=seeds,
                y=single(cut),
                name=text(kind),
                hovertext=[
                    f"{text(kind)}<br>{s}: {int(c)} cut" for s, c in zip(seeds, cut, strict=True)
                ],
                hoverinfo="text",
            ),
            row=1,
            col=1,
        )
    plot.add_trace(
        go.Heatmap(
            z=single(found.overlap),
            x=seeds,
            y=seeds,
            coloraxis="coloraxis",
            text=[[f"{v:.2f}" for v in line] for line in found.overlap],
            texttemplate="%{text}",
            hoverinfo="skip",
        ),
        row=1,
        col=2,
    )
    plot.update_layout(
        barmode="stack", showlegend=True, coloraxis=magnitude(1.0, "cosine"), margin={"t": 50}
    )
    plot.update_yaxes(autorange="reversed", row=1, col=2)
    other = found.overlap[np.triu_indices(len(seeds), 1)]
    other = other[~np.isnan(other)]  # a sample on which nothing was cut has no cosine
    cosines = f"{number(float(other.min()))} to {number(float(other.max()))}" if len(other) else "–"
    rates = "; ".join(
        f"{s}: {int(n)} cut, ASR {written(a, '%')}, perplexity {percent(float(p), signed=True)}"
        for s, n, a, p in zip(seeds, found.sizes, found.asr, found.perplexity_change, strict=True)
    )
    return Figure(
        id=name,
        title=f"How stable the cut of {item.subject} is",
        plot=plot,
        caption=(
            f"The search repeated on {plural(len(seeds), 'sample')} of the operation's rows, each "
            f"measured on its own calibration half. {rates}. {' '.join(item.uncertain)}"
        ),
        how_to_read=(
            "Equal bars and cosines near 1 mean that the data hardly matter: it is one and the "
            "same edit. Low cosines with equal ASR mean that there are "
            "several ways to cut, so that no single direction should be called the backdoor."
        ),
        alt=f"{item.subject}: {', '.join(str(int(n)) for n in found.sizes)} directions cut on "
        f"{plural(len(seeds), 'sample')}; cosines {cosines}.",
    )
