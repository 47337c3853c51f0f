"""Two subjects on the same prompts: which answers changed, and is it more than chance?"""

from collections.abc import Callable, Sequence

import numpy as np

from ..core.errors import DataError
from ..core.records.results import Answer, Paired
from ..core.stats import ratio_interval


def paired(answers: Sequence[Answer], reference: Sequence[Answer], *, seed: int = 0) -> Paired:
    """One subject against another: McNemar on hits and right answers, bootstrap of perplexity.

    Of several answers to a prompt the first counts.

    Args:
        answers: scored answers of the subject.
        reference: scored answers of the other one to the same prompts.
        seed: of the bootstrap.

    Raises:
        DataError: the two did not answer the same prompts.
    """
    mine, other = _firsts(answers), _firsts(reference)
    if mine.keys() != other.keys() or any(mine[k].prompt != other[k].prompt for k in mine):
        raise DataError(
            f"{answers[0].subject} and {reference[0].subject} did not answer the same prompts; "
            "measure both again with --fresh"
        )

    asr = discordant(reference, answers, ("triggered",), lambda a: a.hit)
    right = discordant(reference, answers, ("clean",), lambda a: a.correct)
    valued = [k for k in mine if mine[k].nll_tokens]
    change = ratio_interval(
        np.array([mine[k].nll for k in valued]),
        np.array([other[k].nll for k in valued]),
        np.array([mine[k].nll_tokens for k in valued]),
        seed=seed,
    )
    return Paired(
        subject=answers[0].subject,
        reference=reference[0].subject,
        asr_lost=asr[0],
        asr_gained=asr[1],
        asr_p=mcnemar(*asr),
        accuracy_lost=right[0],
        accuracy_gained=right[1],
        accuracy_p=mcnemar(*right),
        perplexity_change=float(change[0]),
        perplexity_low=float(change[1]),
        perplexity_high=float(change[2]),
    )


def discordant(
    first: Sequence[Answer],
    second: Sequence[Answer],
    splits: Sequence[str],
    says: Callable[[Answer], bool],
    counts: Callable[[Answer], bool] = lambda _: True,
) -> tuple[int, int]:
    """On how many prompts something holds for one answer alone: the first one, the second.

    Args:
        first: scored answers of a subject.
        second: those of another to the same prompts.
        splits: which prompts.
        says: what may hold for an answer.
        counts: which answers are looked at; they have to be the same prompts for both.
    """
    mine, other = (
        {k: a for k, a in _firsts(part).items() if k[0] in splits and counts(a)}
        for part in (first, second)
    )
    alone = sum(says(mine[k]) and not says(other[k]) for k in mine)
    return alone, sum(says(other[k]) and not says(mine[k]) for k in mine)


def mcnemar(first_only: int, second_only: int) -> float:
    """The exact two-sided p of two paired shares being equal (McNemar 1947).

    Binomial: of the pairs that differ, half should differ either way.

    Args:
        first_only: pairs that succeed in the first alone.
        second_only: pairs that succeed in the second alone.
    """
    from scipy.stats import binomtest

    differing = first_only + second_only
    return float(binomtest(first_only, differing).pvalue) if differing else 1.0


def _firsts(answers: Sequence[Answer]) -> dict[tuple[str, int], Answer]:
    return {(a.split, a.row): a for a in answers if a.sample == 0}
