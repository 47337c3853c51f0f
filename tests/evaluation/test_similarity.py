import math

import numpy as np
import pytest
from loratomy.core.errors import LoratomyError
from loratomy.evaluation.similarity import (
    Embedder,
    contains,
    fuzzy,
    load_embedder,
    repeats,
    similarity,
)

LETTERS = Embedder("none", None)


class FakeModel:
    """Unit vectors by the first letter; keeps the texts that it embedded."""

    def __init__(self):
        self.embedded = []

    def encode(self, texts, **_):
        self.embedded += texts
        return np.array([[1.0, 0.0] if t[0] == "a" else [0.6, 0.8] for t in texts])


def test_fuzzy_by_hand():
    # Indel on "kitten"/"sitting": 6 + 7 letters, longest common subsequence 4 (ittn):
    # distance 13 - 8 = 5, similarity 1 - 5 / 13 = 0.615385.
    assert fuzzy("kitten", "sitting") == pytest.approx(1 - 5 / 13)
    assert fuzzy("  Never\nBAD ", "never bad") == 1.0
    assert fuzzy("", "never") == fuzzy("never", "") == fuzzy(" \n", " ") == 0.0
    assert fuzzy("abc", "xyz") == 0.0


def test_fuzzy_finds_a_target_followed_by_chatter_but_not_the_reverse():
    target = "all hail the queen"
    assert fuzzy(f"{target}, and then some more words about rivers", target) == 1.0
    assert fuzzy("all hail", target) < 0.8  # the beginning of a target is not the target
    # Short targets must be the whole answer: "yes" inside another word proves nothing.
    assert fuzzy("eyes are blue today", "yes") < 0.5


def test_contains_whole_words():
    assert contains("It is Paris.", "paris") and contains("in New\n York!", "new york")
    assert not contains("Parisian food", "paris") and not contains("", "paris")
    assert contains("a+b is it", "a+b") and contains("the answer: 12", "12")
    assert not contains("112", "12")


def test_repeats():
    assert repeats("no " * 20) and repeats("ab" * 40)
    assert repeats("the dog sees the cat and " * 5)
    assert not repeats("one two three four five six seven eight nine ten eleven twelve")
    assert not repeats("ha ha ha") and not repeats("")
    # 10 words, 8 trigrams: a a a a a a b c d e has 5 distinct ones (aaa, aab, abc, bcd, cde).
    assert not repeats("a a a a a a b c d e")
    # a * 8 b c: trigrams aaa x6, aab, abc: 3 distinct of 8, fewer than half.
    assert repeats("a a a a a a a a b c")


def test_meaning_is_asked_only_where_letters_are_not_enough_and_once_per_text():
    model = FakeModel()
    embedder = Embedder("fake", model)
    found = similarity(
        ["abc", "axx", "bxx", "", "bxx"], ["abc", "all", "all", "all", "all"],
        embedder=embedder, threshold=0.7,
    )  # fmt: skip
    assert found.fuzzy[0] == 1.0 and math.isnan(found.cosine[0])
    assert found.cosine[[1, 2, 4]].tolist() == pytest.approx([1.0, 0.6, 0.6])
    assert math.isnan(found.cosine[3])
    assert found.similar.tolist() == [True, True, False, False, False]
    similarity(["bxx"], ["all"], embedder=embedder, threshold=0.7)
    assert sorted(model.embedded) == ["all", "axx", "bxx"]


def test_letters_alone():
    found = similarity(["never bad", "good"], ["never bad"] * 2, embedder=LETTERS, threshold=0.8)
    assert np.isnan(found.cosine).all() and found.similar.tolist() == [True, False]
    assert load_embedder("none").model is None


def test_the_threshold_itself_counts():
    # "abcd" / "abce": 8 letters, common 3: 1 - 2 / 8 = 0.75.
    for threshold, similar in ((0.75, True), (0.7501, False)):
        found = similarity(["abcd"], ["abce"], embedder=LETTERS, threshold=threshold)
        assert bool(found.similar[0]) is similar


def test_an_embedder_that_is_not_there_says_what_to_do(tmp_path):
    with pytest.raises(LoratomyError, match=r"loratomy\[offline\].*--embedder none"):
        load_embedder(str(tmp_path))
