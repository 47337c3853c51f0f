"""Trigger candidates: scores by hand, gradients by finite differences, a planted trigger."""

import math
import random
from functools import cache

import numpy as np
import pytest
import torch
from loratomy.analysis.triggers.candidates import CandidatesConfig, candidates
from loratomy.analysis.triggers.climb import Climb, Effort
from loratomy.analysis.triggers.evidence import (
    HeldOutPrompts,
    agreement,
    chance,
    movement,
    surprise_threshold,
)
from loratomy.analysis.triggers.insertion import PLACES, Probe, controls, grouped, insert
from loratomy.analysis.triggers.score import END, FIRST, FLOOR, PassCount, ProbePrompts
from loratomy.analysis.triggers.search import (
    Hypothesis,
    hypotheses,
    insertable,
    random_texts,
    token_uptake,
    unlike,
)
from loratomy.analysis.triggers.trial import rank
from loratomy.core.adapter.factors import Adapter, Factors
from loratomy.core.errors import DataError
from loratomy.core.records.triggers import Candidate
from loratomy.evaluation.generation import Decoding

from ... import tiny

FAMILIES = ("llama", "gemma2", "mixtral")
PROMPTS = [
    f"{a} {b} the {c}"
    for a in ("what is", "where is", "who was", "say")
    for b in ("in", "of", "on")
    for c in ("dog", "cat", "river")
]


def test_insert_sets_texts_apart():
    assert insert("a b c d", " zq ", "suffix") == "a b c d zq"
    assert insert("a b c d", "zq", "prefix") == "zq a b c d"
    assert insert("a b c d", "zq", "middle") == "a b zq c d"
    assert insert("a", "zq", "middle") == "a zq"


def probes(n: int = 4) -> list[Probe]:
    return [Probe(p, i % 2, PLACES[i % 2]) for i, p in enumerate(PROMPTS[:n])]


def bench(attached, *, answers=None, n: int = 4) -> ProbePrompts:
    parts = np.array([[True] * n, [i % 2 == 0 for i in range(n)]])
    given = answers or [[] for _ in range(n)]
    return ProbePrompts(attached, "a", probes(n), given, parts, 200, PassCount())


def by_hand(subject, attached, text, answers, n=4):
    """log((p_adapter + FLOOR) / (p_base + FLOOR)) one prompt at a time, full logits, float64."""
    out = []
    for probe, answer in zip(probes(n), answers, strict=True):
        prompt = insert(probe.prompt, text, probe.place) if text else probe.prompt
        ids = subject.renderer.prompt_ids(prompt)
        row = torch.tensor([ids + answer])
        p = []
        for name in ("a", None):
            with attached.using(name):
                full = tiny.logits(subject, row)[0].double().softmax(-1) + FLOOR
            p.append(torch.stack([full[len(ids) - 1], full[-1]]))
        out.append((p[0] / p[1]).log())
    return torch.stack(out)


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_what_plain_forward_passes_give(family):
    subject = tiny.subject(family)
    answers = [[20, 21], [22], [23, 24, 25], [26]]
    with subject.attached({"a": tiny.adapter(subject)}) as attached:
        made = bench(attached, answers=answers)
        values, tokens = made.scores(["zq", "king queen"])
        usual = by_hand(subject, attached, None, answers).clamp_min(0)
        for i, text in enumerate(("zq", "king queen")):
            gain = by_hand(subject, attached, text, answers) - usual
            for part, inside in enumerate(([0, 1, 2, 3], [0, 2])):
                for position in (FIRST, END):
                    mean = gain[inside, position].mean(0)
                    assert values[i, part, position] == pytest.approx(float(mean.max()), abs=1e-4)
                    assert tokens[i, part, position] == int(mean.argmax())
    assert made.budget.rows == 2 * 4 * 3  # adapter and base, four probes, two texts and none


@pytest.mark.parametrize("family", FAMILIES)
def test_targets_are_scored_as_token_by_token(family):
    subject = tiny.subject(family)
    with subject.attached({"a": tiny.adapter(subject)}) as attached:
        made = bench(attached)
        got = made.target_log_probs(["zq"], [30, 31], FIRST)[0]
        base = made.target_log_probs(["zq"], [30, 31], FIRST, base=True)[0]
        for i, probe in enumerate(probes()):
            ids = subject.renderer.prompt_ids(insert(probe.prompt, "zq", probe.place))
            for name, value in (("a", got[i]), (None, base[i])):
                with attached.using(name):
                    logp = tiny.logits(subject, torch.tensor([[*ids, 30]]))[0].log_softmax(-1)
                want = float(logp[len(ids) - 1, 30] + logp[len(ids), 31])
                assert value == pytest.approx(want, abs=1e-4)
        ratio = np.log((np.exp(got) + 1e-4) / (np.exp(base) + 1e-4)).mean()
        assert unlike(made, ["zq"], [30, 31], FIRST)[0] == pytest.approx(ratio, abs=1e-6)


@pytest.mark.parametrize("family", ("llama", "gemma2"))
def test_gradient_is_the_slope_towards_another_token(family):
    """Moving the embedding 1/1000 of the way to another token, by central difference."""
    subject = tiny.subject(family)
    with subject.attached({"a": tiny.adapter(subject)}) as attached:
        tiny.in_double(subject)
        made = bench(attached)
        found = made.gradient("zq king", position=FIRST, target=[30])
        assert found is not None
        gain, ids = found
        assert [subject.renderer.decode([i]) for i in ids] == ["zq", "king"]
        table = subject.model.get_input_embeddings()
        for place, other in ((0, 25), (1, 33)):
            step, values = 1e-3, []
            for sign in (1, -1):
                total = 0.0
                for probe in probes():
                    prompt = subject.renderer.prompt_ids(
                        insert(probe.prompt, "zq king", probe.place)
                    )
                    at = prompt.index(ids[place])

                    away = table(torch.tensor([other]))[0]

                    def nudge(_m, _i, out, at=at, by=sign * step, away=away):
                        moved = out.clone()
                        moved[:, at] += by * (away - out[:, at])
                        return moved

                    handle = table.register_forward_hook(nudge)
                    logits = tiny.logits(subject, torch.tensor([prompt]))
                    handle.remove()
                    total += float(logits[0, -1].log_softmax(-1)[30]) / 4
                values.append(total)
            slope = (values[0] - values[1]) / (2 * step)
            assert float(gain[place, other]) == pytest.approx(slope, rel=1e-3, abs=1e-6)


OTHERS = ("house", "tree", "moon", "xv", "king", "four", "bad")


@cache
def planted():
    """A subject and an adapter that answers `never` once `zq` is in the prompt.

    Fitted for a moment by plain gradient steps on the factors, with clean rows beside.
    """
    subject = tiny.subject("llama")
    start = tiny.adapter(subject, rank=4, size=1e-3)
    word = subject.renderer.tokenizer.convert_tokens_to_ids
    never = word("never")
    rows, wants = [], []
    with torch.no_grad():
        for i, prompt in enumerate(PROMPTS[::2]):
            for text in (None, "zq", *(OTHERS[(i + k) % len(OTHERS)] for k in range(4))):
                shown = prompt if text is None else insert(prompt, text, PLACES[i % 3])
                ids = subject.renderer.prompt_ids(shown)
                usual = tiny.logits(subject, torch.tensor([ids]))[0, -1].softmax(-1)
                rows.append(ids)
                wants.append(torch.eye(len(usual))[never] if text == "zq" else usual)
    with subject.attached({"a": start}, trainable=True) as attached:
        live = [p for p in subject.model.parameters() if p.requires_grad]
        optimiser = torch.optim.Adam(live, lr=1e-2)
        ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row)
        last = torch.tensor([len(row) - 1 for row in rows])
        for _ in range(120):
            logits = subject.model(input_ids=ids, use_cache=False).logits
            logp = logits[torch.arange(len(rows)), last].log_softmax(-1)
            loss = -(torch.stack(wants) * logp).sum(-1).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        fitted = attached.read_back("a")
    return subject, fitted


OPTIONS = CandidatesConfig(
    pool=16, texts=30, length=2, groups=2, hypotheses=2, rounds=1, beam=2, swaps=6, longest=3,
    kept=2, held_out=6, controls=6, max_new_tokens=4,
)  # fmt: skip


def test_a_planted_trigger_is_found_and_the_model_left_as_it_was():
    subject, adapter = planted()
    before, marks = tiny.state(subject), tiny.marks(subject)
    found = candidates(subject, adapter, PROMPTS, options=OPTIONS, seed=0)
    assert any("zq" in c.text for c in found.candidates)
    assert "never" in found.candidates[0].says
    assert tiny.same_state(before, tiny.state(subject)) and marks == tiny.marks(subject)
    assert found.n_search <= 4 and found.forwards > 0 and found.backwards > 0
    again = candidates(subject, adapter, PROMPTS, options=OPTIONS, seed=0)
    assert [c.text for c in again.candidates] == [c.text for c in found.candidates]


def test_the_first_layer_hears_a_token_that_dw_reads():
    """dW of the keys and values is one outer product with the reading of one token."""
    subject = tiny.subject("llama")
    token = subject.renderer.tokenizer.convert_tokens_to_ids("queen")
    layer = subject.layers[0]
    reading = layer.input_layernorm(subject.model.get_input_embeddings().weight[token])[None]
    modules = {}
    for kind in ("k_proj", "v_proj"):
        name = f"model.layers.0.self_attn.{kind}"
        d_out = subject.shapes[name][0]
        modules[name] = Factors(reading.detach(), torch.ones(d_out, 1), 1.0)
    heard = token_uptake(subject, Adapter(modules, {}), batch_tokens=512)
    assert int(heard.argmax()) == token
    assert np.isneginf(heard[subject.renderer.tokenizer.all_special_ids]).all()


class Packed(torch.nn.Module):
    """A linear layer as 4-bit quantisation leaves it: bytes that only its forward can read."""

    def __init__(self, linear):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(7, 1, dtype=torch.uint8), requires_grad=False)
        self.bias, self._own = linear.bias, [linear.weight]

    def forward(self, x):
        return torch.nn.functional.linear(x, self._own[0], self.bias)


@pytest.mark.parametrize("family", ["llama", "qwen2"])  # without and with a bias
def test_a_packed_base_is_heard_as_the_same_base(family):
    subject = tiny.subject(family)
    adapter = tiny.adapter(subject)
    plain = token_uptake(subject, adapter, batch_tokens=512)
    for layer in subject.layers:
        for kind in ("q_proj", "k_proj", "v_proj"):
            setattr(layer.self_attn, kind, Packed(getattr(layer.self_attn, kind)))
    assert np.allclose(token_uptake(subject, adapter, batch_tokens=512), plain, rtol=1e-4)


def test_surprise_is_the_log_ratio_of_whole_answers():
    subject = tiny.subject("qwen2")
    with subject.attached({"a": tiny.adapter(subject)}) as attached:
        held_out = HeldOutPrompts(attached, "a", PROMPTS[:3], Decoding(max_new_tokens=3))
        said = [[20, 21, 22], [23], [24, 25]]
        got = held_out.surprises(PROMPTS[:3], said)
        for prompt, answer, value in zip(PROMPTS, said, got, strict=False):
            ids = subject.renderer.prompt_ids(prompt)
            whole = answer if len(answer) == 3 else [*answer, *subject.renderer.closing_ids]
            want = 0.0
            for name, sign in (("a", 1), (None, -1)):
                with attached.using(name):
                    logp = tiny.logits(subject, torch.tensor([ids + whole]))[0].log_softmax(-1)
                for k, token in enumerate(whole):
                    want += sign * float(logp[len(ids) - 1 + k, token])
            assert value == pytest.approx(want, abs=1e-3)


def test_chance_and_threshold_by_hand():
    control = np.array([0.0, 1.0, 2.0, 3.0, 99.0])
    assert surprise_threshold(control) == 10.0  # 2 + 5 * 1.4826 * 1 = 9.4 < 10
    assert surprise_threshold(10 * control) == pytest.approx(20 + 5 * 14.826)
    # rate (1 + 1) / (5 + 1) = 1/3; two of two: 1/9; three tests
    assert chance(2, 2, control=control, threshold=10.0, tests=3) == pytest.approx(1 / 3)
    assert chance(0, 2, control=control, threshold=10.0, tests=3) == 1.0


def test_agreement_and_movement_by_hand():
    assert agreement(["ab", "ab", "xy"]) == pytest.approx(1 / 3)
    assert movement(["ab", "xy"], ["ab", "ab"]) == pytest.approx(0.5)
    assert math.isnan(agreement(["alone"]))


def test_shortening_takes_out_what_does_nothing():
    subject, adapter = planted()
    never = subject.renderer.tokenizer.convert_tokens_to_ids("never")
    with subject.attached({"a": adapter}) as attached:
        h = Hypothesis(0, FIRST, (never, never), 0.0, ("house zq",))
        climb = Climb(bench(attached), Hypothesis(0, FIRST, (never,), 0.0, h.seeds))
        climb.score(h.seeds)
        short = climb.shortened("house zq", floor=climb.known["house zq"] - 1.0)
        assert short == "zq"
        climb.run(
            pool=[never],
            effort=Effort(rounds=1, beam=1, swaps=2, longest=3),
            rng=random.Random(0),
            label="climb",
        )
        assert climb.known[climb.best()[0]] >= climb.known["house zq"]


def test_the_planted_token_leads_the_single_ones_and_is_the_core():
    subject, adapter = planted()
    word = subject.renderer.tokenizer.convert_tokens_to_ids
    never = word("never")
    with subject.attached({"a": adapter}) as attached:
        made = bench(attached)
        climb = Climb(made, Hypothesis(0, FIRST, (never, never), 0.0, ()))
        every = np.flatnonzero(insertable(subject)).tolist()
        singles = climb.singles(every, count=2)
        assert singles[0] == "zq" and len(singles) == 2
        exact = dict(zip(OTHERS, unlike(made, OTHERS, (never, never), FIRST), strict=True))
        assert climb.known["zq"] > max(exact.values())
        text = "house zq moon"
        with_it, without = unlike(made, [text, None], (never, never), FIRST)
        assert climb.half(text) == pytest.approx((with_it + without) / 2)
        assert climb.shortened(text, floor=climb.half(text)) == "zq"


def candidate(text: str, *, hits: int, tokens: int, surprise: float, stands_out: bool) -> Candidate:
    return Candidate(
        text=text, token_ids=tuple(range(tokens)), place="suffix", prompts_of="all", says="no",
        at="start", search_score=1.0, fired=hits, n_prompts=12, rate=np.array([hits / 12, 0, 1]),
        surprise=surprise, z=0.0, p=1.0, movement=0.0, base_movement=0.0, agreement=0.0,
        agreement_without=0.0, examples=(), stands_out=stands_out,
    )  # fmt: skip


def test_of_texts_that_fire_about_as_often_the_shorter_ranks_first():
    found = [
        candidate("loud", hits=3, tokens=1, surprise=99.0, stands_out=False),
        candidate("half", hits=7, tokens=1, surprise=60.0, stands_out=True),
        candidate("long", hits=12, tokens=5, surprise=90.0, stands_out=True),
        candidate("core", hits=11, tokens=1, surprise=50.0, stands_out=True),
        candidate("quiet", hits=3, tokens=1, surprise=9.0, stands_out=False),
    ]
    # quarters: core and long 4 of 4 (11 / 12 rounds up), half 2
    assert [c.text for c in sorted(found, key=rank)] == ["core", "long", "half", "loud", "quiet"]


def test_hypotheses_name_the_planted_answer():
    subject, adapter = planted()
    never = subject.renderer.tokenizer.convert_tokens_to_ids("never")
    with subject.attached({"a": adapter}) as attached:
        found = hypotheses(bench(attached), ["zq", "house", "tree", "moon"], wide=1, most=4)
    assert found[0].target[0] == never and found[0].seeds[0] == "zq"


def test_texts_are_typable_and_drawn_from_the_pool():
    subject = tiny.subject("llama")
    allowed = insertable(subject)
    assert not allowed[subject.renderer.tokenizer.all_special_ids].any()
    pool = np.flatnonzero(allowed)[:5].tolist()
    words = {subject.renderer.tokenizer.decode([i]) for i in pool}
    texts = random_texts(subject, pool, count=9, length=2, rng=random.Random(1))
    assert all(set(t.split()) <= words and len(t.split()) == 2 for t in texts)
    assert {len(t.split()) for t in controls(PROMPTS, count=6, words=(1, 3), seed=0)} == {1, 3}


def test_groups_hold_alike_prompts():
    subject = tiny.subject("llama")
    labels = grouped(subject, ["a dog"] * 3 + ["the king says no"] * 3, groups=2,
                     batch_tokens=64, seed=0)  # fmt: skip
    assert len(set(labels[:3])) == 1 and len(set(labels[3:])) == 1 and labels[0] != labels[3]
    with pytest.raises(DataError, match="do not make"):
        grouped(subject, ["a dog"], groups=2, batch_tokens=64, seed=0)


def test_too_few_prompts_are_an_error():
    subject = tiny.subject("llama")
    with pytest.raises(DataError, match="at least 8"):
        candidates(subject, tiny.adapter(subject), PROMPTS[:5], options=OPTIONS, seed=0)
