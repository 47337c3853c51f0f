"""Budgets: how they are written, and cuts that keep to a limit of KL divergence."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from loratomy.core.adapter.factors import Factors
from loratomy.core.errors import LoratomyError
from loratomy.core.model.variant import Treated, treated
from loratomy.core.stats import wilson
from loratomy.evaluation.divergence import greedy_answers
from loratomy.training.recipe import validated
from loratomy.unlearning import METHODS
from loratomy.unlearning.budget import Budget
from loratomy.unlearning.calibration import (
    DialConfig,
    Judge,
    Measured,
    best_of,
    dial,
    judge_of,
    most_within_kl,
    outcome_words,
    path_of,
    within,
)


def budget(value) -> Budget:
    return DialConfig.model_validate({"budget": value}).budget


@pytest.mark.parametrize(
    ("value", "perplexity", "kl"),
    [
        ("5%", 0.05, None),
        ("0.05", 0.05, None),
        (" 1 % ", 0.01, None),
        ("250%", 2.5, None),
        ("1%,kl=.05", 0.01, 0.05),
        ("kl=0.05, perplexity=1%", 0.01, 0.05),
        ("kl=.05", 0.05, 0.05),  # perplexity as usual
        ("kl=0", 0.05, 0.0),
        (0.01, 0.01, None),
        (2, 2.0, None),
        ({"kl": 0.2}, 0.05, 0.2),
        ({"perplexity": "1%", "kl": 0.2}, 0.01, 0.2),
        (Budget(perplexity=0.01, kl=0.2), 0.01, 0.2),
    ],
)
def test_a_budget_in_every_form(value, perplexity, kl):
    assert budget(value) == Budget(perplexity=perplexity, kl=kl)


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("much", "'much' is no share: write 1% or 0.01"),
        ("", "'' is no share"),
        (",kl=.1", "'' is no share"),
        ("5", "'5' is 500%: write 5% if you mean that"),
        ("-1%", "write a share of 0 or more"),
        ("1%,2%", "gives perplexity twice"),
        ("kl=.1,kl=.2", "gives kl twice"),
        ("kl=5%", "kl=5%: write nats per token, like kl=.05"),
        ("kl=-1", "kl=-1: write nats per token, 0 or more"),
        ("kl=nan", "kl=nan: write nats per token, 0 or more"),
        ("kl=", "kl=: write nats per token"),
        ("1%,nats=.05", "there is no limit 'nats'; write e.g. 1%,kl=.05"),
        (-0.1, "greater than or equal to 0"),
        ({"kl": -0.1}, "greater than or equal to 0"),
        ({"nats": 0.1}, "unknown key budget.nats"),
        (None, "budget"),
        ([0.1], "budget"),
    ],
)
def test_what_is_no_budget_is_named(value, why):
    with pytest.raises(LoratomyError) as caught:
        validated(METHODS["truncate"].config, {"budget": value}, "method truncate")
    assert why in str(caught.value)


@given(st.floats(0, 1e6), st.none() | st.floats(0, 1e6))
def test_a_budget_is_written_as_it_is_read(perplexity, kl):
    made = Budget(perplexity=perplexity, kl=kl)
    read = budget(str(made))
    assert read.kl == kl and read.perplexity == pytest.approx(perplexity, rel=1e-14, abs=1e-300)
    assert str(Budget(perplexity=0.01, kl=0.05)) == "1%,kl=0.05" and str(Budget()) == "5%"


def test_an_unknown_limit_of_a_budget_that_may_be_left_open_is_named():
    config = METHODS["guided-unknown"].config
    assert validated(config, {}, "x").budget is None
    assert validated(config, {"budget": "2%"}, "x").budget == Budget(perplexity=0.02)
    with pytest.raises(LoratomyError, match=r"unknown key budget\.nats"):
        validated(config, {"budget": {"nats": 1}}, "x")


SEEN = {  # size -> hits of 10, perplexity, KL
    0.0: Measured(wilson(10, 10), 2.0, 0.0),
    1.0: Measured(wilson(6, 10), 1.9, 0.04),
    2.0: Measured(wilson(0, 10), 1.8, 0.3),
    3.0: Measured(wilson(0, 10), 2.2, 0.1),
}


@pytest.mark.parametrize(
    ("limits", "want"),
    [
        ({}, 2.0),  # perplexity falls: the smallest that reaches 0
        ({"kl": 0.3}, 2.0),  # just within
        ({"kl": 0.29}, 1.0),  # 2 changes answers too much, 3 costs 10 % of perplexity
        ({"kl": 0.29, "perplexity": 0.1}, 3.0),
        ({"kl": 0.03}, 0.0),  # nothing but nothing cut
    ],
)
def test_the_best_size_within_both_limits(limits, want):
    given_budget = Budget(**limits)
    assert best_of(SEEN, goal=0.0, budget=given_budget) == want
    path = path_of(SEEN, want, unit="things", goal=0.0, budget=given_budget)
    assert path.kl_budget == given_budget.kl
    if given_budget.kl is None:
        assert path.kl is None and "KL" not in outcome_words(path, True)
        assert "kl" not in path.to_frame()
    else:
        assert path.kl is not None and path.kl.tolist() == [0.0, 0.04, 0.3, 0.1]
        assert path.to_frame()["kl"].tolist() == path.kl.tolist()
        words = outcome_words(path, False)
        assert f"KL {SEEN[want].kl:.3g} nats per token" in words
        assert f"not reached within +{100 * given_budget.perplexity:g}% and a KL of" in words


def test_words_say_where_perplexity_does_not_count():
    limits = Budget()  # pyright: ignore[reportCallIssue]
    path = path_of(SEEN, 1.0, unit="things", goal=0.0, budget=limits)
    assert "2 things cut reach it, at -10.0%" in outcome_words(path, False)
    words = outcome_words(path, False, own=0.03)
    assert "(-5.0%) on rows known by heart and +3.0% on the adapter's own text" in words
    assert words.endswith("the goal of 0% was not reached within +5%")


def test_what_an_earlier_operation_left_may_be_beyond_the_limit_already():
    seen = {0.0: Measured(wilson(0, 10), 2.0, 0.5), 1.0: Measured(wilson(0, 10), 2.0, 0.6)}
    limit = Budget(kl=0.1)
    assert best_of(seen, goal=0.0, budget=limit) == 0.0
    assert not within(seen[0.0], seen[0.0], limit)


def test_a_dial_stops_at_a_kl_limit(make_bench, small, monkeypatch):
    """The KL of each size by torch in float64, on the poisoned adapter's greedy answers."""
    bench = make_bench(small)

    def make(size: float) -> Treated:
        modules = {
            n: Factors(f.a, f.b * (1 - size / 4), f.scaling) for n, f in small.modules.items()
        }
        return Treated(small.with_modules(modules))

    hits = iter([8, 6, 4, 2, 0] * 3)
    monkeypatch.setattr(Judge, "rate", lambda _: wilson(next(hits), 8))
    judge, subject = judge_of(bench, 4), bench.subject
    with treated(subject, Treated(small)):
        answers = greedy_answers(subject, judge.clean, bench.rule.decoding, label="x")

    def of(state: Treated) -> list[torch.Tensor]:
        found = []
        with treated(subject, state), torch.inference_mode():
            for row in answers:
                ids = torch.tensor([row.prompt + row.completion])
                logits = subject.model(input_ids=ids).logits[0, len(row.prompt) - 1 : -1]
                found.append(logits.double().log_softmax(-1))
        return found

    def kl(size: float) -> float:
        pairs = list(zip(of(make(size)), of(Treated(small)), strict=True))
        total = sum(
            torch.nn.functional.kl_div(q, p, log_target=True, reduction="sum").item()
            for q, p in pairs
        )
        return total / sum(len(p) for _, p in pairs)

    want = [kl(size) for size in (0, 1, 2, 3, 4)]
    assert want == sorted(want) and want[4] > want[2] > 0 and judge.kl(Treated(small)) == 0
    limit = (want[2] + want[3]) / 2
    config = DialConfig.model_validate({"rows": 4, "budget": {"perplexity": 1e9, "kl": limit}})
    size, path, reached = dial(bench, [1, 2, 3, 4], make, config, unit="quarters")
    assert (size, reached) == (2.0, False)
    assert path.kl == pytest.approx(want, rel=1e-3, abs=1e-6)
    free = config.model_copy(update={"budget": Budget(perplexity=1e9)})
    size, path, reached = dial(bench, [1, 2, 3, 4], make, free, unit="quarters")
    assert (size, reached, path.kl) == (4.0, True, None)


@pytest.mark.parametrize(("limit", "want"), [(None, 9), (9.0, 9), (4.5, 4), (0.5, 0), (0.0, 0)])
def test_the_largest_size_within_a_kl_limit(limit, want):
    class Counted:
        looked = 0

        def kl(self, size):
            self.looked += 1
            return float(size)

    judge = Counted()
    assert most_within_kl(judge, lambda n: n, 9, Budget(kl=limit)) == want  # pyright: ignore
    assert judge.looked <= 5
    assert most_within_kl(judge, lambda n: n, 0, Budget(kl=limit)) == 0  # pyright: ignore
