"""Success rules: what they mean, by hand and against Python's own logic; what is no rule."""

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from loratomy.core.errors import LoratomyError
from loratomy.evaluation.success import needed, parse_rule, parse_rules

NAN = float("nan")
SCORES = {
    "similar": np.array([0.9, 0.8, 0.79, 0.0]),
    "fuzzy": np.array([0.9, 0.3, 0.8, 0.0]),
    "cosine": np.array([NAN, 0.7, 0.69, NAN]),
    "refusal": np.array([0.0, 1.0, 1.0, 0.0]),
    "degenerate": np.array([0.0, 0.0, 0.0, 1.0]),
}


def verdict(text: str, threshold: float = 0.8) -> list[bool]:
    return parse_rule(text).verdict(SCORES, threshold).tolist()


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("similar", [True, True, False, False]),  # graded: from the threshold on
        ("refusal", [False, True, True, False]),  # yes or no
        ("not refusal", [True, False, False, True]),
        ("not refusal and not degenerate", [True, False, False, False]),
        ("cosine >= 0.7", [False, True, False, False]),
        ("cosine < 0.7", [False, False, True, False]),
        ("cosine > 0.7", [False, False, False, False]),
        ("cosine <= 0.7", [False, True, True, False]),
        ("not cosine", [True, True, True, True]),  # NaN reaches no threshold
        ("cosine or fuzzy", [True, False, True, False]),
        ("fuzzy >= 1 or similar", [True, True, False, False]),
        ("refusal >= 0.5", [False, True, True, False]),
        ("  similar  ", [True, True, False, False]),
        # `not` binds closer than `and`, `and` closer than `or`.
        ("degenerate or not refusal and fuzzy", [True, False, False, True]),
        ("(degenerate or not refusal) and fuzzy", [True, False, False, False]),
        ("not (refusal or degenerate)", [True, False, False, False]),
        ("not not refusal", [False, True, True, False]),
    ],
)
def test_verdicts_by_hand(text, wanted):
    assert verdict(text) == wanted


def test_the_threshold_counts_for_bare_graded_scorers_alone():
    assert verdict("similar", 0.9) == [True, False, False, False]
    assert verdict("similar", 0.79) == [True, True, True, False]
    assert verdict("refusal", 0.01) == verdict("refusal", 1.0) == [False, True, True, False]
    assert verdict("cosine >= 0.7", 0.01) == [False, True, False, False]


def test_nan_is_no_success_in_any_comparison():
    for op in (">=", ">", "<", "<="):
        found = verdict(f"cosine {op} 0.5")
        assert found[0] is False and found[3] is False


ATOMS = st.sampled_from(["refusal", "degenerate", "similar"])
RULES = st.recursive(
    ATOMS,
    lambda part: st.one_of(
        part.map(lambda p: f"not {p}"),
        st.tuples(part, st.sampled_from(["and", "or"]), part).map(" ".join),
        part.map(lambda p: f"({p})"),
    ),
    max_leaves=8,
)


@given(RULES, st.lists(st.tuples(*[st.booleans()] * 3), min_size=1))
def test_any_rule_means_what_python_means_by_it(text, rows):
    names = ("refusal", "degenerate", "similar")
    scores = {name: np.array([float(r[i]) for r in rows]) for i, name in enumerate(names)}
    found = parse_rule(text).verdict(scores, 0.8).tolist()
    assert found == [eval(text, {}, dict(zip(names, row, strict=True))) for row in rows]


def test_the_scorers_that_a_rule_names_are_known_once_and_in_order():
    rule = parse_rule("not refusal and (cosine >= 0.7 or fuzzy) and not refusal")
    assert rule.scorers == ("refusal", "cosine", "fuzzy")
    rules = parse_rules("similar, exact,not refusal and cosine >= 0.7")
    assert [r.text for r in rules] == ["similar", "exact", "not refusal and cosine >= 0.7"]
    assert needed(rules) == ["similar", "exact", "refusal", "cosine"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "1",
        "0.7",
        "True",
        "None",
        "'similar'",
        "similar()",
        "refusal()",
        "__import__('os')",
        "__import__('os').system('true')",
        "similar.score",
        "similar[0]",
        "similar if refusal else fuzzy",
        "similar + fuzzy",
        "-similar",
        "similar & fuzzy",
        "similar == 1",
        "similar != 1",
        "similar is 1",
        "similar in 1",
        "0.5 <= cosine",
        "0.5 <= cosine <= 0.7",
        "cosine >= '0.7'",
        "cosine >= fuzzy",
        "cosine >= 1j",
        "cosine >= None",
        "cosine >= -1",
        "lambda: similar",
        "[similar]",
        "(similar, fuzzy)",
        "similar := 1",
        "await similar",
        "f'{similar}'",
        "similar and",
        "similar; fuzzy",
        "similar\nfuzzy",
        "similar\0",
        "similar #",
        "\ud800",
        "(" * 10_000 + "similar" + ")" * 10_000,
        "not " * 10_000 + "similar",
        "(" * 150 + "similar",
        " and ".join(["similar", "(" * 10_000]),
    ],
    ids=lambda text: ascii(text)[:24],
)
def test_what_is_no_rule_is_refused_in_one_line(text):
    if text == "similar #":  # a comment is none of ours, but it says nothing either
        assert parse_rule(text).scorers == ("similar",)
        return
    began = time.monotonic()
    with pytest.raises(LoratomyError, match=r"the rule .* is none; write scorers") as caught:
        parse_rule(text)
    line = str(caught.value)
    assert "\n" not in line and len(line) < 400 and time.monotonic() - began < 5


@pytest.mark.parametrize("text", ["not " * 1000 + "similar", "cosine >= 1" + "0" * 400])
def test_what_python_reads_but_no_person_writes_is_refused_too(text):
    with pytest.raises(LoratomyError):
        parse_rule(text).verdict(SCORES, 0.8)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("cosin", "unknown scorer 'cosin'; did you mean cosine"),
        ("cosin >= 0.7", "unknown scorer 'cosin'; did you mean cosine"),
        ("not refusals", "unknown scorer 'refusals'; did you mean refusal"),
        ("similar and keyword", "unknown scorer 'keyword'; did you mean keywords"),
        ("qqq", "unknown scorer 'qqq'; known: "),
        ("__builtins__", "unknown scorer '__builtins__'"),
    ],
)
def test_an_unknown_scorer_is_answered_with_the_nearest(text, said):
    with pytest.raises(LoratomyError, match=said):
        parse_rule(text)


@pytest.mark.parametrize("text", ["", ",", "similar,", ",similar", "similar,,exact"])
def test_a_list_with_a_hole_is_none(text):
    with pytest.raises(LoratomyError, match="the rule '' is none"):
        parse_rules(text)


@given(st.text(max_size=40))
def test_no_text_does_anything_but_parse_or_be_refused(text):
    try:
        found = parse_rule(text)
    except LoratomyError as error:
        assert "\n" not in str(error)
    else:
        assert found.scorers
