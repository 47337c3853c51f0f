"""Out-of-fold scores of linear probes, and the area under their ROC curve with its interval."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...core.errors import DataError
from ...core.stats import bootstrap_weights


@dataclass(frozen=True, slots=True)
class Folds:
    """Which prompts are held out together."""

    groups: np.ndarray
    """Prompts with one untriggered form share a number, ``[prompt]``."""
    fold: np.ndarray
    """The fold in which each prompt is tested, ``[prompt]``."""

    @property
    def splits(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Training and test prompts of every fold."""
        numbers = np.unique(self.fold)
        return [(np.flatnonzero(self.fold != f), np.flatnonzero(self.fold == f)) for f in numbers]


def make_folds(plains: Sequence[str], *, sets: int, folds: int, seed: int) -> Folds:
    """Folds in which all forms of a prompt, triggered or not, are tested together.

    Args:
        plains: the prompts without trigger.
        sets: forms of each prompt, the first one triggered.
        folds: how many.
        seed: of the assignment.

    Raises:
        DataError: fewer different prompts than folds.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    order = {text: i for i, text in enumerate(dict.fromkeys(plains))}
    groups = np.array([order[text] for text in plains], dtype=int)
    if len(order) < max(folds, 2):
        raise DataError(
            f"probes need at least {max(folds, 2)} different prompts for {folds} folds, "
            f"there are {len(order)}; give more or set folds lower"
        )
    labels = np.arange(sets)[:, None].repeat(len(plains), 1) == 0
    cv = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    fold = np.empty(len(plains), dtype=int)
    every = np.tile(groups, sets)
    for number, (_, test) in enumerate(cv.split(every, labels.ravel(), every)):
        fold[np.unique(test % len(plains))] = number
    return Folds(groups, fold)


def shuffled_labels(sets: int, prompts: int, *, draws: int, seed: int) -> np.ndarray:
    """Which form of each prompt is called triggered, ``[draw, prompt]``; draw 0 is the truth.

    In the other draws the label goes to one of the prompt's forms by lot.
    """
    rng = np.random.default_rng(seed)
    return np.vstack([np.zeros((1, prompts), int), rng.integers(sets, size=(draws, prompts))])


def out_of_fold(
    x: np.ndarray,
    labels: np.ndarray,
    folds: Folds,
    *,
    others: np.ndarray,
    penalty: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Scores of probes that have not seen the prompt, higher meaning triggered.

    A probe is ridge regression of the label on features standardised by the training prompts: up to
    scale Fisher's discriminant with a ridge, whatever the sizes of the classes, and so a linear
    classifier by its order. All labellings of a fold share one decomposition.

    Args:
        x: activations ``[set, prompt, d_model]`` that probes are trained on.
        labels: ``[draw, prompt]``, the set that counts as triggered.
        folds: who is tested together.
        others: further activations ``[other, prompt, d_model]``, scored by draw 0 only.
        penalty: ridge on the weights, scikit-learn's alpha.

    Returns:
        Scores ``[draw, set, prompt]`` and those of the others ``[other, prompt]``.
    """
    from sklearn.linear_model import Ridge
    from sklearn.preprocessing import StandardScaler

    sets, _, d_model = x.shape
    every = np.concatenate([x, others]).astype(np.float64)
    scores = np.empty((len(labels), *x.shape[:2]))
    beyond = np.empty(others.shape[:2])
    for train, test in folds.splits:
        given = x[:, train].reshape(-1, d_model).astype(np.float64)
        scaler = StandardScaler().fit(given)
        truth = np.arange(sets)[:, None] == labels[:, None, train]
        wanted = truth.reshape(len(labels), -1).T.astype(np.float64)
        probe = Ridge(alpha=penalty).fit(scaler.transform(given), wanted)
        tested = scaler.transform(every[:, test].reshape(-1, d_model))
        found = probe.predict(tested).T.reshape(len(labels), len(every), len(test))
        scores[:, :, test] = found[:, :sets]
        beyond[:, test] = found[0, sets:]
    return scores, beyond


def auroc(positive: np.ndarray, negatives: np.ndarray, folds: Folds, *, seed: int) -> np.ndarray:
    """Area under the ROC curve for the sample and for resampled prompts, ``[1 + draw]``.

    The chance that a positive scores above a negative, ties counting half, over pairs tested in
    the same fold (the probes of two folds share no scale). Prompts are resampled with all their
    forms (cluster bootstrap); copies of one prompt are not compared with each other, or the easier
    comparison with a prompt's own forms would weigh more than in the sample. The same seed
    resamples the same prompts, so that differences of two results are paired.

    Args:
        positive: scores, ``[prompt]``.
        negatives: scores, ``[set, prompt]``.
        folds: who was tested together.
        seed: of the resampling.
    """
    wins, counts = _compared(positive, negatives, folds)
    n = int(folds.groups.max()) + 1
    times = np.vstack([np.ones(n), n * bootstrap_weights(n, seed=seed)])[:, folds.groups]
    same = folds.groups[:, None] == folds.groups
    own = times.copy()
    own[1:] *= 1 - 1 / n  # two different prompts meet (n - 1) / n times in a resample of n
    won, every = (
        ((times @ (m * ~same)) * times).sum(1) + own @ (m * same).sum(1) for m in (wins, counts)
    )
    return won / every


def area(positive: np.ndarray, negatives: np.ndarray, folds: Folds) -> float:
    """`auroc` of the sample alone."""
    wins, counts = _compared(positive, negatives, folds)
    return float(wins.sum() / counts.sum())


def _compared(
    positive: np.ndarray, negatives: np.ndarray, folds: Folds
) -> tuple[np.ndarray, np.ndarray]:
    """Wins of each prompt's positive over each prompt's negatives, and comparisons, ``[prompt,
    prompt]``; 0 where the two were not tested together."""
    together = folds.fold[:, None] == folds.fold
    above = positive[:, None] > negatives[:, None, :]
    equal = positive[:, None] == negatives[:, None, :]
    return (above + 0.5 * equal).sum(0) * together, len(negatives) * together.astype(float)


def with_interval(draws: np.ndarray) -> np.ndarray:
    """The sample's value and the percentile 95 % interval of the resampled ones, ``[..., 3]``.

    Args:
        draws: as `auroc` returns them, along the last axis.
    """
    low, high = np.percentile(draws[..., 1:], [2.5, 97.5], axis=-1)
    return np.stack([draws[..., 0], low, high], -1)
