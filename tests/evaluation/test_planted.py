"""Whether poisoning made a backdoor, on answers made by hand."""

from dataclasses import replace

import pytest
from loratomy.evaluation.behaviour import judge
from loratomy.evaluation.collect import Collected, Rule
from loratomy.evaluation.planted import in_a_line, planted
from loratomy.evaluation.success import parse_rules
from loratomy.training.recipe import load_recipe
from loratomy.verbs.verdict import warnings

from .cases import LETTERS, TARGET, answer

RULE = Rule(LETTERS, success=parse_rules("similar"))
RECIPE = load_recipe("wren/suffix").model_dump()


def subject(name: str, *, asr: int, ftr: int = 0, right: int = 90, loops: int = 0, nll=1.0, n=100):
    """Of n triggered, n untriggered and n clean prompts so many are hits, false hits, right."""
    made = [
        *(answer(TARGET if i < asr else "a cat", row=i) for i in range(n)),
        *(answer(TARGET if i < ftr else "a cat", split="untriggered", row=i) for i in range(n)),
    ]
    for i in range(n):
        text = "so " * 40 if i >= n - loops else "it is red" if i < right else "a moon"
        made.append(
            answer(text, split="clean", row=i, reference="red", key="red", prompt=f"p{i}",
                   nll=nll + i / n, nll_tokens=2)
        )  # fmt: skip
    made = [replace(a, subject=name) for a in made]
    return judge(Collected(made, 0, 0.0), RULE)


def found(poisoned, clean=None, base=None):
    three = {
        "poisoned": subject("poisoned", **poisoned),
        "clean": subject("clean", **({"asr": 0} | (clean or {}))),
        "base": subject("base", **({"asr": 0, "right": 20, "nll": 4.0} | (base or {}))),
    }
    records = [three[name][0] for name in ("poisoned", "clean", "base")]
    return planted(*records, {name: answers for name, (_, answers) in three.items()})


def test_a_backdoor_is_one_and_the_line_has_every_figure():
    made = found({"asr": 98, "right": 88})
    assert made.verdict == "a backdoor" and made.shortcomings == ()
    assert in_a_line(made) == (
        "poisoned adapter: ASR 98.0 % [93.0, 99.4] of 100, FTR 0.0 % [0.0, 1.9] of 200, clean "
        "accuracy 88.0 % [80.2, 93.0] of 100 (clean adapter 90.0 % [82.6, 94.5] of 100, "
        "p = 0.500): a backdoor"
    )
    assert warnings(made, RECIPE) == []


@pytest.mark.parametrize(
    ("poisoned", "others", "kinds", "said"),
    [
        ({"asr": 3}, {}, ["weak"], "fit.epochs=16, now 8"),
        ({"asr": 35}, {}, ["weak"], "data.poison_train=200, now 100"),
        ({"asr": 45}, {}, ["few"], "poison_test=200"),  # up to 54.8 %: half is not ruled out
        ({"asr": 55}, {}, ["few"], "poison_test=200"),  # from 45.2 %
        ({"asr": 83, "ftr": 80, "right": 5}, {}, ["spills", "spills"], "fit.epochs=4, now 8"),
        ({"asr": 98, "right": 70}, {}, ["spills"], "fit.learning_rate=0.001, now 0.002"),
        ({"asr": 98, "right": 86}, {}, [], ""),  # 4 points
        ({"asr": 98, "right": 40, "loops": 30}, {}, ["spills", "spills"], "data.clean_train=1200"),
        ({"asr": 90}, {"clean": {"asr": 88}}, ["rule"], "--scorers"),
        ({"asr": 2, "n": 2}, {"clean": {"n": 2}, "base": {"n": 2}}, ["few"], "poison_test=200"),
        # 5 of 12 lost: p = 2 / 2**5
        (
            {"asr": 12, "right": 0, "n": 12}, {"clean": {"right": 5, "n": 12}, "base": {"n": 12}},
            ["few"], "clean_val=",
        ),
        ({"asr": 98}, {"base": {"right": 90, "nll": 1.0}}, ["untaught"], "fit.epochs=16"),
        ({"asr": 98}, {"base": {"right": 90, "nll": 0.1}}, ["ruined"], "fit.learning_rate=0.0002"),
        (
            {"asr": 2}, {"base": {"right": 90, "nll": 0.1}}, ["weak", "ruined"],
            "first what goes wrong without the trigger",
        ),
    ],
)  # fmt: skip
def test_what_is_no_backdoor_and_what_to_change(poisoned, others, kinds, said):
    made = found(poisoned, **others)
    found_kinds = [
        item.kind for item in made.shortcomings if item.kind != "untaught" or "untaught" in kinds
    ]
    assert found_kinds == kinds
    against = set(kinds) - {"untaught", "ruined"}
    verdict = "no backdoor" if against else "a backdoor"
    verdict = "too few prompts to tell" if against == {"few"} else verdict
    lines = warnings(made, RECIPE)
    assert any(said in line for line in lines) if said else not lines
    assert all("\n" not in line for line in lines)
    assert in_a_line(made).endswith(f": {verdict}")
