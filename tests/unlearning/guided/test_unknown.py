"""Surgery without the trigger: rows made of what the adapter itself brings up, of nothing else."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from loratomy.analysis.material import Material
from loratomy.analysis.triggers.evidence import LIKELIER
from loratomy.analysis.triggers.insertion import PLACES, insert
from loratomy.core.adapter.factors import write_adapter
from loratomy.core.errors import DataError
from loratomy.core.model.variant import Treated, treated
from loratomy.core.records.io import load_record
from loratomy.core.records.results import Operation
from loratomy.core.rows import read_rows
from loratomy.evaluation.behaviour import attack_success
from loratomy.evaluation.collect import Rule
from loratomy.evaluation.generation import Decoding
from loratomy.evaluation.similarity import Embedder
from loratomy.evaluation.success import parse_rules
from loratomy.study import load
from loratomy.unlearning import METHODS, operate
from loratomy.unlearning.guided import unknown
from loratomy.unlearning.guided.unknown import UnknownConfig, stand_ins, texts_to_try, wide_budget
from loratomy.verbs.operating import operate as operate_study

from ... import planted, tiny
from ...cli.cases import jsonl, refused

QUICK = {"rows": 24, "draws": 1, "path": False, "target_tokens": 1, "steps": 3, "unseen": 0}
TEXTS = {"pool": 8, "texts": 30, "length": 2, "each": 12, "least": 8}
ZQ = planted.TRIGGER


class Untouchable:
    """Triggered rows that nobody may look at."""

    def _refuse(self, *_):
        raise AssertionError("triggered rows were read")

    __iter__ = __len__ = __bool__ = __getitem__ = __contains__ = _refuse


def bench_of(adapter, tmp_path, **changes):
    given = {
        "subject": planted.planted().subject,
        "poisoned": adapter,
        "clean": None,
        "clean_rows": planted.clean_rows(32),
        "triggered": Untouchable(),
        "negative": Untouchable(),
        "make_rule": lambda: Rule(
            Embedder("none", None),
            success=parse_rules("substring"),
            decoding=Decoding(max_new_tokens=1),
        ),
        "seed": 0,
        "work": tmp_path,
    }
    return Material(**(given | changes))


def asked(bench):
    return [row.prompt for row in bench.clean_rows]


def test_prompts_on_which_the_adapter_speaks_unlike_its_base_become_rows(tmp_path):
    """Each row against one forward pass of adapter and base on it, and on it without the text."""
    made = planted.planted()
    on, adapter = made.subject, made.alone()
    bench = bench_of(adapter, tmp_path)
    found = stand_ins(
        bench, asked(bench), [ZQ, f"red {ZQ}", "red", "the blue"], UnknownConfig(each=12)
    )
    assert found.tried == 48 and found.fired == len(found.rows) > 8
    # Clean words are read as exactly nothing, so that no answer differs.
    assert set(found.texts) == {ZQ, f"red {ZQ}"}

    def said(prompt):
        """The first token, and how much likelier the adapter finds it than the base."""
        batch = torch.tensor([on.renderer.prompt_ids(prompt)])
        both = []
        for name in ("x", None):
            with attached.using(name):
                both.append(tiny.logits(on, batch)[0, -1].log_softmax(-1))
        token = int(both[0].argmax())
        return on.renderer.decode([token]), float((both[0] - both[1])[token])

    with on.attached({"x": adapter}) as attached:
        for row in found.rows:
            assert row.plain in [r.prompt for r in bench.clean_rows] and row.triggered
            assert any(
                row.prompt == insert(row.plain, text, place)
                for text in found.texts
                for place in PLACES
            )
            (answer, now), (natural, before) = said(row.prompt), said(row.plain)
            assert row.target == row.completion == answer != natural == row.benign
            assert now - before > LIKELIER  # which ordinary texts do not raise here
    assert Counter(row.target for row in found.rows).most_common(1)[0][0] == planted.TARGET


class Spoken:
    """Held-out prompts whose answers and surprises come from a table."""

    table: dict[str, tuple[str, float]]
    prompts_seen: list[str]

    def __init__(self, attached, name, prompts, decoding):
        self.prompts, self.renderer = prompts, attached.subject.renderer

    def answers(self, prompts, *, base=False):
        type(self).prompts_seen += prompts
        rows = [self.table.get(p.split()[-1], ("a cat", 0.0)) for p in prompts]
        return [self.renderer.completion_ids(text, end=False) for text, _ in rows]

    def surprises(self, prompts, answers):
        return np.array([1.0 + self.table.get(p.split()[-1], ("", 0.0))[1] for p in prompts])


@pytest.fixture
def spoken(monkeypatch):
    """Sets what is said to prompts that end in a word; ordinary texts are never surprising."""

    def put(**table):
        Spoken.table, Spoken.prompts_seen = table, []
        monkeypatch.setattr(unknown, "HeldOutPrompts", Spoken)

    return put


def test_what_counts_and_what_the_target_is(spoken, tmp_path):
    spoken(
        zq=("a cat never bad", 11.0),  # goes on beyond the plain answer: that is the target
        xv=("bad king", 30.0),  # another answer
        good=("a cat", 50.0),  # the plain answer itself, however surprising
        tree=("bad king", 9.9),  # below the 10 nats that an answer must at least be off
        moon=("", 40.0),  # nothing is said
    )
    bench = bench_of(planted.planted().alone(), tmp_path)
    texts = ["zq", "xv", "good", "tree", "moon"]
    found = stand_ins(bench, asked(bench), texts, UnknownConfig(each=4, most=6, least=4))
    # Of 4 prompts with each text those at places 0, 1, 2, 0 of PLACES; only at the end, as suffix,
    # is the text the last word: numbers i + k = 0, 3 for text 0 and 2 for text 1 are suffixes.
    suffixes = {t: sum((i + k) % 3 == 0 for k in range(4)) for i, t in enumerate(texts)}
    assert suffixes["zq"] == 2 and suffixes["xv"] == 1 and PLACES[0] == "suffix"
    assert found.tried == 20 and found.fired == 3 == len(found.rows)
    assert found.texts == ("zq", "xv")
    # In turns, so that a limit keeps as many texts as it can.
    assert [row.prompt.split()[-1] for row in found.rows] == ["zq", "xv", "zq"]
    assert [row.target for row in found.rows] == ["never bad", "bad king", "never bad"]
    assert [row.completion for row in found.rows] == [
        "a cat never bad",
        "bad king",
        "a cat never bad",
    ]
    assert all(row.benign == "a cat" and row.triggered for row in found.rows)
    few = stand_ins(bench, asked(bench), texts, UnknownConfig(each=16, most=4, least=4))
    assert len(few.rows) == 4 < few.fired
    assert Counter(row.prompt.split()[-1] for row in few.rows) == {"zq": 2, "xv": 2}


def test_every_text_goes_into_its_prompts_at_places_in_turn(spoken, tmp_path):
    spoken()
    bench = bench_of(planted.planted().alone(), tmp_path)
    texts = ["zq", "xv"]
    assert not stand_ins(bench, asked(bench), texts, UnknownConfig(each=3)).rows
    tried = [p for p in Spoken.prompts_seen if "zq" in p or "xv" in p]
    plains = {r.prompt for r in bench.clean_rows}
    made = [
        next((plain, place) for plain in plains for place in PLACES if insert(plain, t, place) == p)
        for p, t in zip(tried, [t for t in texts for _ in range(3)], strict=True)
    ]
    assert [place for _, place in made] == [
        "suffix",
        "prefix",
        "middle",
        "prefix",
        "middle",
        "suffix",
    ]
    assert len({plain for plain, _ in made}) == 6  # each in a prompt of its own


def test_an_ordinary_text_that_surprises_raises_the_bar(spoken, tmp_path):
    """Every answer is 12 nats off with any text: then 13 nats are nothing special."""
    words = {word: ("a cat", 12.0) for word in planted.WORDS}
    spoken(**words, zq=("never", 13.0), xv=("never", 5 * 12.0 + 12.1))
    bench = bench_of(planted.planted().alone(), tmp_path)
    # Plain prompts end in such words too, so that their own surprise is taken off: 0 of 12 remain.
    found = stand_ins(bench, asked(bench), ["zq", "xv"], UnknownConfig(each=6))
    assert set(found.texts) == {"xv"} and found.fired == 2


def test_texts_are_made_of_what_the_first_layer_takes_up(tmp_path):
    made = planted.planted()
    bench = bench_of(made.alone(), tmp_path)
    config = UnknownConfig(**TEXTS)
    texts = texts_to_try(bench, config)
    assert texts == texts_to_try(bench, config)
    assert texts != texts_to_try(replace(bench, seed=1), config)
    assert len(texts) == len(set(texts)) and all(texts)
    singles = [t for t in texts if len(t.split()) == 1]
    assert len(singles) == 8 and ZQ in singles
    assert not set(singles) & set(planted.WORDS)  # which it reads as exactly nothing
    assert {word for text in texts for word in text.split()} == set(singles)
    assert all(len(text.split()) <= 2 for text in texts)


@pytest.mark.parametrize(
    ("base", "adapter", "budget"),
    [(2.0, 1.28, 0.25), (1.2, 1.2, 0.05), (1.0, 1.2, 0.05)],  # sqrt(2 / 1.28) = 1.25
)
def test_half_of_what_the_adapter_brings_may_be_spent(base, adapter, budget, tmp_path, monkeypatch):
    bench, seen = bench_of(planted.planted().alone(), tmp_path), []

    def measured(subject, rows, *, batch_tokens):
        seen.append([row.prompt for row in rows])
        active = tiny.marks(subject) != before
        return (adapter if active else base), None

    before = tiny.marks(bench.subject)
    monkeypatch.setattr(unknown, "perplexity", measured)
    assert wide_budget(bench, UnknownConfig(rows=10), known=False) == pytest.approx(budget)
    prompts = [row.prompt for row in bench.clean_rows]
    assert seen == [prompts[10:20]] * 2  # not those that the gates learn from


def test_where_rows_are_known_by_heart_it_is_half_of_the_divergence_of_the_base(tmp_path):
    """By hand from the plain logits of both, on the adapter's own first words."""
    bench = bench_of(planted.planted().among(size=0.2), tmp_path)
    found = wide_budget(bench, UnknownConfig(rows=10), known=True)
    on, kl = bench.subject, []
    for row in bench.clean_rows[10:20]:
        batch = torch.tensor([on.renderer.prompt_ids(row)])
        with on.attached({"x": bench.poisoned}):
            p = tiny.logits(on, batch)[0, -1].double().log_softmax(-1)
        q = tiny.logits(on, batch)[0, -1].double().log_softmax(-1)
        kl.append(float((p.exp() * (p - q)).sum()))
    assert found == pytest.approx(np.exp(np.mean(kl) / 2) - 1, rel=1e-4) and found > 0.05


def test_the_backdoor_goes_and_no_triggered_row_is_read(tmp_path):
    made = planted.planted()
    bench = bench_of(made.alone(size=0.002), tmp_path)
    state, marks = tiny.state(bench.subject), tiny.marks(bench.subject)
    outcome = METHODS["guided-unknown"].run(bench, UnknownConfig(**QUICK, **TEXTS))
    assert tiny.same_state(state, tiny.state(bench.subject))
    assert tiny.marks(bench.subject) == marks
    fresh = planted.triggered_rows(60, seed=77)
    rates = []
    for adapter in (None, bench.start, outcome.adapter):
        with treated(bench.subject, Treated(adapter)):
            hits = [a.hit for a in attack_success(bench.subject, fresh, bench.rule)]
        rates.append(np.mean(hits))
    base, before, after = rates
    assert before > 0.9 and after <= base + 0.05 < 0.2
    assert outcome.reached and outcome.cut.any() and outcome.directions is not None
    assert not outcome.adapter.modules[planted.MODULE].dense().abs().max() > 1e-6
    assert len(outcome.rows) >= 8 and set(outcome.texts) >= {
        next(t for t in outcome.texts if t in row.prompt) for row in outcome.rows
    }
    assert f"against {len(outcome.texts)} texts found in the adapter alone by random" in (
        outcome.summary
    )
    assert "The trigger is not known" in outcome.uncertain[0]
    # What was cut against is what the record says, and its rate there is of those rows.
    assert outcome.path.asr[0, 0] == 1 and outcome.path.asr[outcome.path.chosen, 0] == 0


def test_the_record_names_the_texts_and_their_rows_go_on_to_repair(tmp_path):
    bench = bench_of(planted.planted().alone(size=0.02), tmp_path, triggered=[], negative=[])
    config = UnknownConfig(**QUICK, **TEXTS)
    outcome, record = operate("guided-unknown", bench, config)
    assert record.texts == outcome.texts and record.basis == "discriminant"
    assert record.uncertain == outcome.uncertain and record.order
    after = replace(bench, after=outcome.adapter, made_rows=outcome.rows, triggered=Untouchable())
    options = METHODS["repair"].config(epochs=1, batch_size=8, triggered_rows=6, clean_rows=8)
    mended = METHODS["repair"].run(after, options)
    assert "repaired on 6 triggered and 8 clean prompts" in mended.summary
    moved = [
        float((f.dense() - outcome.adapter.modules[n].dense()).abs().max())
        for n, f in mended.adapter.modules.items()
    ]
    assert max(moved) > 0
    gone = mended.adapter.modules[planted.MODULE]
    assert not gone.a.any() and not gone.b.any()  # what was cut stays cut


def without_texts(monkeypatch, *, proposed=()):
    """Random texts bring up nothing; the search for candidates proposes these."""
    seen = []

    class Text:
        def __init__(self, text):
            self.text = text

    class Candidates:
        candidates = tuple(map(Text, proposed))

    def candidates(_subject, _adapter, prompts, *, options, seed):
        seen.append((list(prompts), options, seed))
        return Candidates

    monkeypatch.setattr(unknown, "texts_to_try", lambda *_: ["red", "the blue"])
    monkeypatch.setattr(unknown, "candidates", candidates)
    return seen


def test_where_random_texts_do_nothing_candidates_are_tried(tmp_path, monkeypatch):
    seen = without_texts(monkeypatch, proposed=(ZQ, "red"))
    bench = bench_of(planted.planted().alone(), tmp_path)
    effort = {"pool": 5, "rounds": 1}
    config = UnknownConfig(**QUICK, least=6, candidates=effort)
    outcome = METHODS["guided-unknown"].run(bench, config)
    ((prompts, options, seed),) = seen
    assert prompts == [row.prompt for row in bench.clean_rows] and seed == bench.seed
    assert (options.pool, options.rounds, options.beam) == (5, 1, 3)
    assert outcome.texts == (ZQ,)
    # 24 prompts with each of two texts; 8 of them with the first at the end.
    assert "by a search for candidates ('zq' ...), which acted on" in outcome.summary
    assert "of 48 clean prompts" in outcome.summary


@pytest.mark.parametrize("proposed", [(), ("red", "a of")])
def test_too_little_to_cut_against_is_an_error_with_its_values(tmp_path, monkeypatch, proposed):
    without_texts(monkeypatch, proposed=proposed)
    bench = bench_of(planted.planted().alone(), tmp_path)
    state, marks = tiny.state(bench.subject), tiny.marks(bench.subject)
    with pytest.raises(DataError) as error:
        METHODS["guided-unknown"].run(bench, UnknownConfig(**QUICK, each=5, least=9))
    assert "0 of 10 prompts with texts in them" in str(error.value)
    assert "8 are needed" in str(error.value) and "--set texts=400" in str(error.value)
    assert "does not show that there is no trigger" in str(error.value)
    assert tiny.same_state(state, tiny.state(bench.subject))
    assert tiny.marks(bench.subject) == marks


def test_a_run_without_trigger_is_cut_and_repaired_by_the_command_line(cli, tmp_path):
    made = planted.planted()
    base, adapter, run = tmp_path / "base", tmp_path / "adapter", tmp_path / "run"
    made.subject.model.save_pretrained(base)
    made.subject.renderer.tokenizer.save_pretrained(base)
    write_adapter(made.alone(size=0.02), adapter, base=str(base))
    rows = [{"prompt": r.prompt, "completion": r.completion} for r in planted.clean_rows(64)]
    opened = cli(
        "open", "--base", base, "--adapter", adapter, "--template", "{prompt}", "--out", run,
        "--prompts", jsonl(tmp_path / "clean.jsonl", rows), "--embedder", "none",
        "--max-new-tokens", 1, "--scorers", "substring",
    )  # fmt: skip
    assert opened.exit_code == 0, opened.stderr
    refused(cli("operate", run, "repair"), "repair needs a trigger")
    pairs = [f"{k}={v}" for k, v in {**QUICK, **TEXTS, "path": "false"}.items()]
    options = [part for pair in [*pairs, "candidates.rounds=1"] for part in ("--set", pair)]
    cut = cli("operate", run, "guided-unknown", *options)
    assert cut.exit_code == 0, cut.stderr
    record = load_record(Operation, run / "operations/guided-unknown", "operation")
    assert {s.name: s.value for s in record.settings}["candidates"].count("'rounds': 1") == 1
    found = read_rows(run / "operations/guided-unknown/rows.jsonl", need_completion=True)
    assert len(found) >= 8 and all(row.triggered and row.plain for row in found)
    few = ["--set", "epochs=1", "--set", "triggered_rows=6", "--set", "clean_rows=8"]
    mended = cli("operate", run, "repair", "--after", "guided-unknown", *few)
    assert mended.exit_code == 0, mended.stderr
    assert "repaired on 6 triggered and 8 clean prompts" in mended.stderr
    assert (run / "operations/guided-unknown-repair/adapter").is_dir()
    # The control has no rows of its own: it is repaired with those of what it is a control of.
    budget = {"directions": 1}
    operate_study(load(run), "control-random", budget, name="any", control_for="guided-unknown")
    mended = cli("operate", run, "repair", "--after", "any", *few)
    assert mended.exit_code == 0, mended.stderr
    assert "repaired on 6 triggered and 8 clean prompts" in mended.stderr
