"""Answers and cases made by hand."""

import math

from loratomy.core.records.results import Answer
from loratomy.evaluation.scorers import Cases
from loratomy.evaluation.similarity import Embedder

LETTERS = Embedder("none", None)
TARGET = "all hail the queen"


def answer(text: str = "", *, split: str = "triggered", **changes) -> Answer:
    """An answer to one prompt, not judged yet."""
    known = {
        "subject": "x",
        "row": 0,
        "sample": 0,
        "prompt": "what is a dog zq",
        "target": TARGET,
        "reference": "",
        "key": "",
        "tokens": len(text.split()),
        "nll": math.nan,
        "nll_tokens": 0,
        "kl": math.nan,
        "kl_tokens": 0,
        "scores": {},
        "verdicts": {},
        "hit": False,
        "counted": True,
        "correct": False,
    }
    return Answer(answer=text, split=split, **(known | changes))


def cases(answers, targets=TARGET, *, task="fixed", embedder=LETTERS, threshold=0.8) -> Cases:
    """Answers beside one target for all, or one each."""
    targets = [targets] * len(answers) if isinstance(targets, str) else targets
    return Cases(answers, targets, task, embedder, threshold)
