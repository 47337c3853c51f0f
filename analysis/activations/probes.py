"""Linear probes: where in the model can one read off that a prompt is triggered?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import Field

from ...core.adapter.factors import Adapter
from ...core.config import Config
from ...core.errors import DataError
from ...core.model.subject import Subject
from ...core.progress import tracked
from ...core.records.activations import Probes
from ...core.rendering.prompts import Renderer
from ...core.rows import Row
from ...data.attacks.triggers import TRIGGERS, Trigger, place
from ..analyses import ANALYSES, TRIGGER, Analysis
from ..material import Material
from ..patching.pairs import Pair, differing, make_pairs, trigger_positions
from .crossval import Folds, area, auroc, make_folds, out_of_fold, shuffled_labels, with_interval
from .residuals import adapters_of, residuals

PLACES = ("last", "mean", "trigger")
NEGATIVES = ("both", "untriggered", "stand-in")
AT_TRIGGER = PLACES.index("trigger")

Spots = list[list[int]]
"""The positions of each of `PLACES` in one prompt."""


def probes(
    subject: Subject,
    adapters: Mapping[str, Adapter],
    pairs: Sequence[Pair],
    others: Mapping[str, Sequence[Row]],
    *,
    left_out: Sequence[str],
    folds: int,
    permutations: int,
    penalty: float,
    batch_tokens: int,
    seed: int,
) -> Probes:
    """AUROC of linear probes for the trigger, by layer and place, with their controls.

    Positives are the triggered prompts; negatives the same prompts without trigger and with a
    neutral stand-in of the trigger's length. Scores come from folds in which no form of the prompt
    was trained on (Alain & Bengio 2017; Hewitt & Liang 2019 for the control).

    Args:
        subject: the base.
        adapters: by name, in the order of the record.
        pairs: triggered prompts with their stand-ins; their rows have a form without trigger.
        others: other triggers' names -> the same prompts with them, in the same order.
        left_out: what to say of other triggers that were not tried.
        folds: of the cross-validation.
        permutations: shuffled controls, at least 2.
        penalty: ridge on the weights.
        batch_tokens: most positions of a forward pass.
        seed: of folds, shuffles and intervals.

    Raises:
        DataError: fewer different prompts than folds, a row without its untriggered form.
        LoratomyError: a residual is not finite.
    """
    plains = [_plain(pair.row) for pair in pairs]
    split = make_folds(plains, sets=3, folds=folds, seed=seed)
    prompts, spots = _inputs(subject.renderer, pairs, others)
    labels = [shuffled_labels(n, len(pairs), draws=permutations, seed=seed) for n in (3, 2)]
    scored: list[_Scored] = []
    with subject.attached(adapters) as attached:
        for name in (None, *adapters):
            with attached.using(name):
                x = residuals(
                    subject,
                    prompts,
                    spots,
                    batch_tokens=batch_tokens,
                    label=f"residuals of {name or 'the base'}",
                )
            x = x.reshape(3 + len(others), len(pairs), *x.shape[1:])
            label = f"probes of {name or 'the base'}"
            scored.append(_scored(x, labels, split, penalty, seed, label))
    both = [s.draws[:, 0] for s in scored]
    return Probes(
        subjects=("base", *adapters),
        places=PLACES,
        negatives=NEGATIVES,
        auroc=np.stack([with_interval(s.draws) for s in scored]),
        gain=np.stack([with_interval(one - both[0]) for one in both[1:]]),
        shuffled=np.stack([s.shuffled for s in scored]),
        others=tuple(others),
        transfer=np.stack([with_interval(s.transfer) for s in scored]),
        left_out=tuple(left_out),
        n_prompts=len(pairs),
        folds=folds,
        permutations=permutations,
        penalty=penalty,
        dtype=subject.dtype,
        sentence=_sentence(tuple(adapters)[-1], both, scored, tuple(others), len(pairs)),
    )


def _plain(row: Row) -> str:
    if row.plain is None:
        raise DataError(f"the row {row.prompt[:60]!r} has no form without the trigger")
    return row.plain


def _inputs(
    renderer: Renderer,
    pairs: Sequence[Pair],
    others: Mapping[str, Sequence[Row]],
) -> tuple[list[list[int]], list[Spots]]:
    """Triggered prompts, stand-ins, untriggered ones, then each other trigger's; their places."""
    ids = [renderer.prompt_ids(pair.row) for pair in pairs]
    twins = [pair.untriggered[: len(own)] for pair, own in zip(pairs, ids, strict=True)]
    bare = [renderer.prompt_ids(pair.row.untriggered()) for pair in pairs]
    ends = [[pair.trigger[-1]] for pair in pairs]
    prompts, triggers = [*ids, *twins, *bare], [*ends, *ends, *([] for _ in bare)]
    for rows in others.values():
        prompts += [renderer.prompt_ids(row) for row in rows]
        triggers += [[trigger_positions(renderer, row)[-1]] for row in rows]
    spots = [
        [[len(p) - 1], list(range(len(p))), at] for p, at in zip(prompts, triggers, strict=True)
    ]
    return prompts, spots


@dataclass(frozen=True, slots=True)
class _Scored:
    """AUROC of one subject's probes, the sample first, then resampled prompts."""

    draws: np.ndarray
    """``[place, negative, layer, 1 + draw]``."""
    shuffled: np.ndarray
    """``[place, layer, 3]``."""
    transfer: np.ndarray
    """``[place, other, layer, 1 + draw]``."""


def _scored(
    x: np.ndarray,
    labels: list[np.ndarray],
    split: Folds,
    penalty: float,
    seed: int,
    label: str,
) -> _Scored:
    """Fit and score the probes of every layer and place.

    Args:
        x: ``[triggered, stand-in, untriggered, *others][prompt, layer, place, d_model]``.
        labels: shuffles for three forms and for two.
        split: the folds.
        penalty: ridge on the weights.
        seed: of the bootstrap.
        label: of the progress.
    """
    layers = x.shape[2]
    size = len(auroc(np.zeros(x.shape[1]), np.zeros((1, x.shape[1])), split, seed=seed))
    draws = np.full((len(PLACES), len(NEGATIVES), layers, size), np.nan)
    transfer = np.full((len(PLACES), len(x) - 3, layers, size), np.nan)
    shuffled = np.empty((len(PLACES), layers, 3))
    for layer in tracked(range(layers), label):
        for where in range(len(PLACES)):
            sets = 2 if where == AT_TRIGGER else 3
            truth = labels[3 - sets]
            here = x[:, :, layer, where]
            scores, far = out_of_fold(here[:sets], truth, split, others=here[3:], penalty=penalty)
            positive, negatives = scores[0, 0], scores[0, 1:]
            draws[where, 0, layer] = auroc(positive, negatives, split, seed=seed)
            draws[where, 2, layer] = auroc(positive, negatives[:1], split, seed=seed)
            if sets == 3:
                draws[where, 1, layer] = auroc(positive, negatives[1:], split, seed=seed)
            for i, other in enumerate(far):
                transfer[where, i, layer] = auroc(other, negatives, split, seed=seed)
            control = [_control(s, t, split) for s, t in zip(scores[1:], truth[1:], strict=True)]
            shuffled[where, layer] = [np.mean(control), *np.percentile(control, [2.5, 97.5])]
    return _Scored(draws, shuffled, transfer)


def _control(scores: np.ndarray, truth: np.ndarray, split: Folds) -> float:
    """AUROC of a probe that was trained and is tested on shuffled labels.

    Args:
        scores: ``[set, prompt]``.
        truth: which form of each prompt is called triggered, ``[prompt]``.
        split: the folds.
    """
    sets, n = scores.shape
    order = (truth + np.arange(sets)[:, None]) % sets
    moved = scores[order, np.arange(n)]
    return area(moved[0], moved[1:], split)


def _sentence(
    adapter: str,
    both: list[np.ndarray],
    scored: list[_Scored],
    others: tuple[str, ...],
    n: int,
) -> str:
    """The finding at the last prompt position, averaged over the layers: no layer is picked."""
    mine, base = (with_interval(draws[0].mean(0)) for draws in (both[-1], both[0]))
    gain = with_interval((both[-1] - both[0])[0].mean(0))
    text = (
        f"On {n} prompts in three forms, probes on the last position tell triggered ones with an "
        f"AUROC of {_shown(mine)} in {adapter} and {_shown(base)} in the base, averaged over the "
        f"layers (difference {_shown(gain)}; shuffled labels: "
        f"{scored[-1].shuffled[0, :, 0].mean():.2f})"
    )
    if others:
        far = with_interval(scored[-1].transfer[0].mean((0, 1)))
        text += f"; applied to other triggers the same probes reach {_shown(far)}"
        text += _reading(far)
    return text + "."


def _reading(far: np.ndarray) -> str:
    if far[1] > 0.5:
        return ": above 0.5 they tell any odd insertion, not this trigger alone"
    return ": they do not take other insertions for this trigger"


def _shown(value: np.ndarray) -> str:
    return f"{value[0]:.2f} [{value[1]:.2f}, {value[2]:.2f}]"


def other_triggers(
    rows: Sequence[Row], *, seed: int
) -> tuple[dict[str, list[Row]], tuple[str, ...]]:
    """The same prompts with every other registered trigger, and why some were left out.

    A trigger that shares text with the one in the rows is no other trigger.

    Args:
        rows: triggered rows with their untriggered form.
        seed: of the places.

    Raises:
        DataError: a row without its untriggered form.
    """
    own = {text for row in rows for text in _inserted(row)}
    plains = [_plain(row) for row in rows]
    made: dict[str, list[Row]] = {}
    left_out = []
    for name, trigger in TRIGGERS.items():
        if any(_overlap(word, text) for word in trigger.words for text in own):
            left_out.append(f"{name}: shares words with this trigger")
            continue
        try:
            made[name] = [_with(plain, trigger, seed) for plain in plains]
        except DataError as error:
            left_out.append(f"{name}: {error}")
    return made, tuple(left_out)


def _with(plain: str, trigger: Trigger, seed: int) -> Row:
    prompt, spans = place(plain, trigger, seed=seed)
    return Row(prompt=prompt, triggered=True, plain=plain, trigger_span=spans)


def _inserted(row: Row) -> list[str]:
    """The trigger's own texts in a row."""
    if row.trigger_span:
        return [row.prompt[start:stop] for start, stop in row.trigger_span]
    spots = differing([*map(ord, row.prompt)], [*map(ord, _plain(row))])
    return [row.prompt[spots.start : spots.stop].strip()]


def _overlap(one: str, other: str) -> bool:
    one, other = one.casefold(), other.casefold()
    return one in other or other in one


class ProbesConfig(Config):
    """Options of the probes."""

    prompts: int = Field(100, ge=4)
    """Triggered prompts to read, where there are as many: probes need more than other analyses."""
    folds: int = Field(5, ge=2)
    """Folds of the cross-validation."""
    permutations: int = Field(20, ge=2)
    """Shuffled controls."""
    penalty: float = Field(100.0, gt=0)
    """Ridge penalty of the regression on standardised residuals; roughly equal to logistic
    regression's default C = 1 on separable classes."""
    batch_tokens: int = Field(4096, ge=1)
    """Most positions of a forward pass."""


def _run(material: Material, config: ProbesConfig) -> dict[str, Probes]:
    rows = material.triggered[: config.prompts]
    pairs = make_pairs(
        material.subject.renderer, rows, target_tokens=material.target_tokens, seed=material.seed
    )
    others, left_out = other_triggers(rows, seed=material.seed)
    options = config.model_dump(exclude={"prompts"})
    adapters = adapters_of(material)
    found = probes(
        material.subject, adapters, pairs, others, left_out=left_out, seed=material.seed, **options
    )
    return {"probes": found}


ANALYSES.register("probes")(
    Analysis(
        about="Linear probes by layer: do they recognise triggered prompts, and only this trigger?",
        needs=(TRIGGER,),
        cost="a forward pass per prompt form and subject, seconds of regression on the CPU",
        source="Alain & Bengio 2017, arXiv 1610.01644; control: Hewitt & Liang 2019",
        config=ProbesConfig,
        run=_run,
    )
)
