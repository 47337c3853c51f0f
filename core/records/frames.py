"""Records as tidy data frames: one row an observation, one column a quantity.

A quantity with a 95 % interval takes three columns: its name, ``low`` and ``high`` (of several in
one frame ``NAME_low`` and ``NAME_high``); a rate has its count ``n`` beside them.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import numpy as np

from .results import Rate

if TYPE_CHECKING:
    import pandas as pd

Axes = Mapping[str, Sequence[Any] | np.ndarray | int]
"""Name -> labels of an axis, or its length."""


def long(axes: Axes, /, *, only: str = "", **values: Any) -> "pd.DataFrame":
    """Arrays over common axes as rows; cells in which nothing is defined are left out.

    Args:
        axes: of the rows, in the order of the arrays' axes.
        only: the value whose ``_low`` and ``_high`` are called ``low`` and ``high``.
        **values: ``[*axes]``, or ``[*axes, (value, low, high)]``; None is left out.
    """
    import pandas as pd

    labels = {n: range(a) if isinstance(a, int) else list(a) for n, a in axes.items()}
    shape = tuple(len(a) for a in labels.values())
    frame = pd.MultiIndex.from_product(
        [list(v) for v in labels.values()], names=list(labels)
    ).to_frame(index=False)
    columns = []
    for name, value in values.items():
        if value is None:
            continue
        array = np.asarray(value)
        if array.shape == (*shape, 3):
            ends = ("low", "high") if name == only else (f"{name}_low", f"{name}_high")
            parts = dict(zip((name, *ends), np.moveaxis(array, -1, 0), strict=True))
        else:
            parts = {name: array}
        for column, part in parts.items():
            frame[column] = part.reshape(-1)
            columns.append(column)
    return frame.dropna(how="all", subset=columns).reset_index(drop=True) if columns else frame


def rate(name: str, found: Rate | None) -> dict[str, Any]:
    """A rate as columns."""
    if found is None:
        return {name: np.nan, f"{name}_low": np.nan, f"{name}_high": np.nan, f"{name}_n": 0}
    ends = {f"{name}_low": found.low, f"{name}_high": found.high}
    return {name: found.value, **ends, f"{name}_n": found.n}


def flat(record: Any, *, leave_out: Iterable[str] = ()) -> dict[str, Any]:
    """The scalars of a record as one row: rates with their ends, arrays of three likewise."""
    row: dict[str, Any] = {}
    for field in fields(record):
        value = getattr(record, field.name)
        if field.name in leave_out:
            continue
        if isinstance(value, Rate):
            row |= rate(field.name, value)
        elif isinstance(value, np.ndarray) and value.shape == (3,) and value.dtype.kind == "f":
            names = (field.name, f"{field.name}_low", f"{field.name}_high")
            row |= dict(zip(names, map(float, value), strict=True))
        elif value is None or isinstance(value, str | int | float | bool):
            row[field.name] = value
    return row


def rows(records: Iterable[Any], **more: Any) -> "pd.DataFrame":
    """One row for each record, of its scalars."""
    import pandas as pd

    return pd.DataFrame([{**more, **flat(record)} for record in records])


def frame_of(record: Any) -> "pd.DataFrame":
    """The tidy table of a record."""
    import pandas as pd

    if make := FRAMES.get(type(record).__name__):
        return make(record)
    arrays = {f.name: getattr(record, f.name) for f in fields(record)}
    arrays = {n: a for n, a in arrays.items() if isinstance(a, np.ndarray) and a.ndim == 1}
    if arrays and len({len(a) for a in arrays.values()}) == 1:
        return pd.DataFrame(arrays)
    return pd.DataFrame([flat(record)])


def _grid(r: Any, **values: Any) -> "pd.DataFrame":
    """Sites by layers by columns, with the role of each column."""
    layers = np.asarray(next(iter(values.values()))).shape[1]
    frame = long({"site": r.sites, "layer": layers, "column": r.columns}, **values)
    role: Any = dict(zip(r.columns, r.column_roles, strict=True))
    frame.insert(3, "role", frame["column"].map(role))
    return frame


def _patching(r: Any) -> "pd.DataFrame":
    return _grid(r, recovery=r.recovery, low=r.low, high=r.high, p=r.p)


def _where(r: Any) -> "pd.DataFrame":
    import pandas as pd

    layers = long({"name": r.layer_ids}, only="effect", effect=r.layer_effect)
    modules = long({"name": r.modules}, only="effect", effect=r.module_effect)
    names = [r.modules[m] for m in r.direction_module]
    directions = pd.DataFrame(
        {
            "name": [f"{n}:{k}" for n, k in zip(names, r.direction_rank, strict=True)],
            "effect": r.direction_exact,
            "attribution": r.direction_attribution,
            "sigma": r.direction_sigma,
            "clean_cost": r.direction_clean_cost,
        }
    )
    parts = {"layer": layers, "module": modules, "direction": directions}
    return (
        pd.concat(
            [part.assign(name=part["name"].astype(str)) for part in parts.values()],
            keys=list(parts),
            names=["what", None],
        )
        .reset_index(level=0)
        .reset_index(drop=True)
    )


def _modules(r: Any, **values: Any) -> "pd.DataFrame":
    """One row a module."""
    import pandas as pd

    about = {"module": r.modules, "kind": r.kinds, "layer": r.layers}
    return pd.DataFrame({**about, **values})


def _spectra(r: Any) -> "pd.DataFrame":
    names = ("frobenius", "effective_rank", "stable_rank", "share", "relative_norm")
    frame = _modules(r, **{name: getattr(r, name) for name in names})
    for column, share in enumerate((50, 90, 99)):
        frame[f"rank_{share}"] = r.energy[:, column]
    return frame


def _lens(r: Any) -> "pd.DataFrame":
    import pandas as pd

    found = []
    for d, module in enumerate(r.modules):
        about = {"module": module, "layer": r.layers[d], "place": r.place[d]}
        about |= {"sigma": r.sigma[d], "effect": r.effect[d]}
        for does, tokens, scores in (
            ("reads", r.listens, r.listen_scores),
            ("writes", r.writes, r.write_scores),
        ):
            found += [
                {**about, "does": does, "end": end, "token": token, "score": scores[d, end, top]}
                for end, listed in enumerate(tokens[d])
                for top, token in enumerate(listed)
            ]
    return pd.DataFrame(found)


def _matching(r: Any) -> "pd.DataFrame":
    import pandas as pd

    names = ("sigma", "similarity", "p_value", "unmatched", "standing_out")
    about = {"module": [r.modules[m] for m in r.direction_module], "place": r.direction_place}
    return pd.DataFrame({**about, **{name: getattr(r, name) for name in names}})


def answers_frame(answers: Iterable[Any]) -> "pd.DataFrame":
    """One row an answer, with a column for each score and each verdict."""
    import pandas as pd

    return pd.DataFrame(
        {
            **flat(a),
            **{f"score:{name}": score for name, score in a.scores.items()},
            **{f"verdict:{name}": verdict for name, verdict in a.verdicts.items()},
        }
        for a in answers
    )


def _neurons(r: Any) -> "pd.DataFrame":
    import pandas as pd

    frame = pd.DataFrame({"module": [r.modules[m] for m in r.neuron_module], "size": r.size})
    for unlearning, change in zip(r.unlearnings, r.nwc, strict=True):
        frame[f"change_{unlearning.name}"] = change
    return frame


def _activity(r: Any) -> "pd.DataFrame":
    import pandas as pd

    names = [r.modules[m] for m in r.neuron_module]
    return pd.DataFrame({"module": names, "poisoned": r.poisoned, "reference": r.other})


def _effectiveness(r: Any) -> "pd.DataFrame":
    import pandas as pd

    parts = [
        long(
            {"layer": r.layers}, only="malicious", malicious=i.malicious, degenerate=i.degenerate
        ).assign(intervention=i.kind, site=i.site)
        for i in r.interventions
    ]
    return pd.concat(parts, ignore_index=True)


def _vector(r: Any) -> "pd.DataFrame":
    import pandas as pd

    return pd.DataFrame([flat(c, leave_out=("example",)) for c in r.conditions])


def _behaviour(r: Any) -> dict[str, Any]:
    return flat(r, leave_out=("accuracy_rule",))


def _comparison(r: Any) -> "pd.DataFrame":
    import pandas as pd

    frame = pd.DataFrame([_behaviour(row) for row in r.rows])
    if not r.paired:
        return frame
    paired = pd.DataFrame([flat(pair, leave_out=("reference",)) for pair in r.paired])
    ends = {f"perplexity_{end}": f"perplexity_change_{end}" for end in ("low", "high")}
    return frame.merge(paired.rename(columns=ends), on="subject", how="left")


def _path(r: Any) -> "pd.DataFrame":
    chosen = np.arange(len(r.size)) == r.chosen
    frame = long({"size": r.size}, only="asr", asr=r.asr, perplexity=r.perplexity, kl=r.kl)
    return frame.assign(chosen=chosen)


def _operation(r: Any) -> "pd.DataFrame":
    import pandas as pd

    if not r.kept.size:
        return pd.DataFrame([flat(r)])
    importance = r.importance if r.importance.shape == r.kept.shape else None
    axes = {"module": r.modules, "place": r.kept.shape[1]}
    frame = long(axes, kept=r.kept, importance=importance).dropna(subset=["kept"])
    return frame.assign(kept=frame["kept"].astype(bool)).reset_index(drop=True)


def _curves(r: Any) -> "pd.DataFrame":
    import pandas as pd

    loss = long({"step": r.step}, loss=r.loss)
    behaviour = long({"step": r.eval_step}, asr=r.asr, clean_accuracy=r.clean_accuracy)
    return pd.concat([loss, behaviour]).sort_values("step", kind="stable").reset_index(drop=True)


def _verdict(r: Any) -> "pd.DataFrame":
    import pandas as pd

    frame = pd.DataFrame({r.what: r.names, "mean_rank": r.mean_rank})
    for vote in r.votes:
        frame[vote.method] = vote.score
    return frame


def _across(r: Any) -> "pd.DataFrame":
    import pandas as pd

    parts = [
        pd.DataFrame(
            {name: getattr(p, name) for name in ("layer", "depth", "value", "low", "high")}
        ).assign(run=run.name, profile=p.key, unit=p.unit)
        for run in r.runs
        for p in run.profiles
    ]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


FRAMES: dict[str, Callable[[Any], "pd.DataFrame"]] = {
    "PatchingMap": _patching,
    "Screening": lambda r: _grid(
        r, attribution=r.attribution, integrated=r.integrated, exact=r.exact
    ),
    "Where": _where,
    "Verdict": _verdict,
    "Spectra": _spectra,
    "Difference": lambda r: _modules(
        r, clean=r.clean_norm, poisoned=r.poisoned_norm, difference=r.difference_norm
    ),
    "Matching": _matching,
    "Intruders": lambda r: long(
        {"module": r.modules, "place": r.cosine.shape[1]},
        sigma=r.singular_values, cosine=r.cosine, cosine_upper=r.cosine_upper, inside=r.inside,
    ),
    "Lens": _lens,
    "LogitLens": lambda r: long(
        {"subject": r.subjects, "layer": r.mean.shape[1], "column": r.columns},
        only="log_prob", log_prob=r.mean, rank=r.rank, prompts=r.top_count,
    ),
    "Probes": lambda r: long(
        {"subject": r.subjects, "place": r.places, "negative": r.negatives,
         "layer": r.auroc.shape[3]},
        only="auroc", auroc=r.auroc,
    ),
    "Consistency": lambda r: long(
        {"subject": r.subjects, "condition": r.conditions, "transition": r.value.shape[2]},
        only="turn", turn=r.value,
    ),
    "TriggerAttention": lambda r: long(
        {"subject": r.subjects, "query": r.queries, "layer": r.mass.shape[2],
         "head": r.mass.shape[3]},
        only="mass", mass=r.mass, stand_in=r.stand_in, excess=r.excess, sink=r.sink,
    ),
    "NeuronChange": _neurons,
    "NeuronActivity": _activity,
    "Effectiveness": _effectiveness,
    "HeadVector": _vector,
    "Candidates": lambda r: rows(r.candidates),
    "Comparison": _comparison,
    "Answer": lambda r: answers_frame([r]),
    "CutPath": _path,
    "Operation": _operation,
    "Curves": _curves,
    "Relearning": lambda r: long({"step": r.steps}, only="asr", asr=r.asr).assign(
        entry=r.entry, rows=r.rows
    ),
    "Across": _across,
    "RenderingChoice": lambda r: rows(r.tried),
    "BenchTable": lambda r: rows(r.rows),
}  # fmt: skip
"""Class of a record -> what makes its table; the others are one row of their scalars."""
