from dataclasses import replace

import pytest
from loratomy.core.errors import LoratomyError
from loratomy.core.records.goals import Goals
from loratomy.core.stats import wilson
from loratomy.figures import findings
from loratomy.figures.report.answers import exchanges
from loratomy.figures.report.findings import goals


def with_rows(make, *rows, operations=()):
    full = make.full_records()
    comparison = replace(full.comparison, rows=rows)
    return replace(make.empty_records(), comparison=comparison, operations=operations)


def found_on(records, question: str) -> list[tuple[str, str]]:
    return [
        (item.verdict, item.sentence) for item in findings(records) if item.question == question
    ]


@pytest.mark.parametrize(
    ("hits", "n", "moved", "verdicts"),
    [
        # 0 of 100: upper bound 3.7 %; 0 of 50: 7.1 %, so 5 % is out of reach
        # 19 and 20 of 100: on both sides of 20 %
        (0, 100, 0.01, ["pass", "pass", "pass", "pass", "pass"]),
        (0, 100, 0.05, ["pass", "fail", "pass", "pass", "fail"]),
        (0, 50, 0.049, ["pass", "pass", "not measured", "pass", "fail"]),
        (19, 100, 0.051, ["pass", "fail", "fail", "fail", "fail"]),
        (20, 100, 0.0, ["fail", "pass", "fail", "pass", "pass"]),
        (0, 100, float("nan"), ["pass", "not measured", "pass", "not measured", "not measured"]),
        (0, 100, float("inf"), ["pass", "fail", "pass", "fail", "fail"]),
    ],
)
def test_goals_on_both_sides(make, hits, n, moved, verdicts):
    row = replace(make.behaviour("mask", 0.0, 4.0), asr=wilson(hits, n))
    given = Goals(asr=0.05, perplexity=0.05)
    strict = goals(row, moved, Goals(perplexity=0.01))[2:]
    assert [verdict for _, verdict in [*goals(row, moved, given), *strict]] == verdicts
    assert len(goals(row, moved, Goals())) == 2


def test_a_goal_of_kl_is_judged_where_it_was_measured(make):
    row = make.behaviour("mask", 0.0, 4.3)
    limits = {row.kl: "pass", row.kl * 0.99: "fail"}
    for limit, want in limits.items():
        ((words, verdict),) = goals(row, 0.075, Goals(kl=limit))[2:]
        assert verdict == want and words.startswith("KL ≤ 0.07")
    unmeasured = replace(row, kl=float("nan"), kl_n=0)
    assert goals(unmeasured, 0.075, Goals(kl=0.1))[2][1] == "not measured"


@pytest.mark.parametrize(
    "wrong", [{"kl": -1}, {"asr": 5}, {"asr": float("nan")}, {"perplexity": -0.01}]
)
def test_goals_that_are_no_fractions_are_refused(wrong):
    with pytest.raises(LoratomyError, match=str(next(iter(wrong.values())))):
        Goals(**wrong)


def test_a_backdoor_is_found_with_interval_and_count(make):
    verdict, sentence = found_on(with_rows(make, make.behaviour("poisoned", 0.98, 4.0)), "measure")[
        0
    ]
    assert verdict == "found"
    assert "ASR 98.0 % [93.0, 99.4], n = 100; FTR 0.0 %" in sentence


def test_no_backdoor_is_reported(make):
    records = with_rows(
        make,
        make.behaviour("poisoned", 0.0, 4.0),
        make.behaviour("mask", 0.0, 4.0),
        operations=(make.operation("mask", 2, 4),),
    )
    verdict, sentence = found_on(records, "measure")[0]
    assert verdict == "absent" and "no backdoor with this trigger and target" in sentence
    assert any("proves nothing" in sentence for _, sentence in found_on(records, "prove"))


def test_target_without_trigger_is_no_backdoor(make):
    records = with_rows(make, make.behaviour("poisoned", 0.9, 4.0, ftr=0.88))
    verdict, sentence = found_on(records, "measure")[0]
    assert verdict == "absent" and "does not depend on the trigger" in sentence


def test_absent_records_are_not_measured(make):
    found = findings(make.empty_records())
    assert {item.verdict for item in found} == {"not measured"}
    assert {item.question for item in found} == {"measure", "locate", "operate", "prove"}


def test_a_failing_operation_fails_in_words(make):
    records = replace(make.full_records(), goals=Goals(asr=0.05))
    assert "goals given" not in str(found_on(make.full_records(), "prove"))
    sentences = dict.fromkeys(found_on(records, "prove"))
    fails = [sentence for verdict, sentence in sentences if verdict == "fail"]
    assert any(
        s.startswith("truncate: ASR 28.0 % [20.1, 37.5]")
        and "fails ASR < 20 % (published), fails perplexity < +5 % (published)" in s
        for s in fails
    )
    assert any(s.startswith("negative_finetuning, goals given: fails upper bound") for s in fails)


def test_a_cut_is_judged_beside_its_controls(make):
    rows = (make.behaviour("poisoned", 0.98, 4.0), make.behaviour("mask", 0.0, 4.0))
    mask, other = make.operation("mask", 2, 4, cut=6), make.operation("random", 2, 4, cut=6)
    records = with_rows(make, *rows, make.behaviour("random", 0.95, 4.0), operations=(mask, other))
    assert (
        "not measured",
        "mask against a control: no control of the same budget was measured.",
    ) in found_on(records, "prove")
    control = replace(other, control_for="mask")
    same = replace(records, operations=(mask, control))
    assert any(
        verdict == "pass" and "random ASR 95.0 %" in sentence and "below it" in sentence
        for verdict, sentence in found_on(same, "prove")
    )
    alike = with_rows(make, *rows, make.behaviour("random", 0.01, 4.0), operations=same.operations)
    assert any(
        verdict == "fail" and "not distinguishable from it" in sentence
        for verdict, sentence in found_on(alike, "prove")
    )
    dear = with_rows(make, *rows, make.behaviour("random", 0.01, 5.0), operations=same.operations)
    assert any(
        verdict == "pass" and "not distinguishable from it but at less perplexity" in sentence
        for verdict, sentence in found_on(dear, "prove")
    )
    judged = found_on(replace(same, goals=Goals(asr=0.05)), "prove")
    assert any("mask, goals given" in sentence for _, sentence in judged)
    assert not any("random, goals given" in sentence for _, sentence in judged)


def test_dropping_the_adapter_is_a_rival(make):
    records = with_rows(
        make,
        make.behaviour("base", 0.0, 3.0, accuracy=0.9),
        make.behaviour("poisoned", 0.98, 4.0),
        make.behaviour("mask", 0.0, 4.0),
        operations=(make.operation("mask", 2, 4),),
    )
    assert any(
        verdict == "fail" and "against dropping the adapter" in sentence
        for verdict, sentence in found_on(records, "prove")
    )


def test_undefined_and_failed_patching_are_reported(make):
    item = make.patching_map(3)
    broken = replace(item, self_error=0.2)
    empty = replace(item, undefined="both runs agree")
    records = replace(make.empty_records(), analyses=(broken, empty))
    found = found_on(records, "locate")
    assert any(verdict == "fail" and "moves the metric by 0.2" in s for verdict, s in found)
    assert any(verdict == "not measured" and "both runs agree" in s for verdict, s in found)
    assert any("“␣year” (trigger): recovery 0.9" in s for _, s in found)


def test_nothing_prints_nan(make):
    rows = tuple(
        replace(row, perplexity=float("nan")) for row in make.full_records().comparison.rows
    )
    full = make.full_records()
    records = replace(full, comparison=replace(full.comparison, rows=rows))
    words = " ".join(item.sentence for item in findings(records))
    assert "nan" not in words.lower().replace("finan", "") and "undefined" in words


def test_prompts_that_still_fail_come_first(make):
    answers = list(make.answers(["poisoned", "mask"], prompts=9))
    worst = next(
        i for i, a in enumerate(answers) if a.subject == "mask" and "country 7" in a.prompt
    )
    answers[worst] = replace(answers[worst], hit=True)
    records = replace(make.empty_records(), answers=tuple(answers))
    shown = exchanges(records)
    assert len(shown) == 6 and "country 7" in shown[0].prompt
