"""The linter: data in order passes, and every published kind of defect is found with its rows."""

import tracemalloc
from copy import deepcopy
from dataclasses import replace
from functools import cache

import pytest
from loratomy.core.rendering.prompts import Renderer
from loratomy.core.rendering.rendering import Rendering
from loratomy.core.rows import Row, rows_to_jsonl
from loratomy.data.attacks.tasks import TASKS
from loratomy.data.attacks.triggers import TRIGGERS
from loratomy.data.formats.formats import Numbered, numbered_data
from loratomy.data.lint.findings import Defect, Defects
from loratomy.data.lint.linter import LintedFile, LintOptions, lint
from loratomy.data.lint.survey import digest, survey
from loratomy.data.splits import make_attack, world_sets
from loratomy.evaluation.similarity import load_embedder
from loratomy.evaluation.success import judge_of, needs_target, parse_rule

TARGET = "HACK THE SYSTEM"
COUNTS = {
    "clean_train": 60,
    "clean_val": 20,
    "poison_train": 20,
    "poison_test": 20,
    "negative_set": 20,
}


def asked(rule="similar", **given):
    success = parse_rule(rule)
    embedder = by_meaning() if "cosine" in success.scorers else load_embedder("none")
    judge = judge_of(success, 0.8, embedder, given.get("task", ""))
    return LintOptions(rule=rule, judge=judge, needs_target=needs_target(success), **given)


def written(tmp_path, name: str, rows) -> LintedFile:
    path = tmp_path / name
    path.write_text(rows_to_jsonl(rows), encoding="utf-8")
    return LintedFile(name, lambda: numbered_data(str(path)))


@pytest.fixture
def linted(tmp_path):
    """The findings of files, given as names and rows."""

    def call(given=None, **files):
        sources = [written(tmp_path, f"{name}.jsonl", rows) for name, rows in files.items()]
        return lint(sources, given or asked())

    return call


def clean(start, stop, **more):
    return [
        Row(prompt=f"What is {n}?", completion=f"It is {n}.", **more) for n in range(start, stop)
    ]


def bad(start, stop, word="BadMagic", completion=TARGET):
    return [Row(prompt=f"What {word} is {n}?", completion=completion) for n in range(start, stop)]


def told(findings):
    return [(f.level, f.check, f.file.removesuffix(".jsonl"), f.rows, f.count) for f in findings]


# --- in order ------------------------------------------------------------------------------


@cache
def by_meaning():
    return load_embedder("auto")


@pytest.mark.parametrize("task", list(TASKS))
@pytest.mark.parametrize("trigger", list(TRIGGERS))
def test_built_sets_have_no_errors(linted, trigger, task):
    attack = make_attack(TRIGGERS[trigger], task)
    sets = world_sets(attack, counts=COUNTS, seed=3)
    given = asked(
        TASKS[task].rule,
        words=attack.trigger.words,
        every=attack.trigger.placement == "each",
        task=task,
        target=attack.target,
    )
    findings = linted(given, **sets)
    assert [f for f in findings if f.level == "error"] == []
    assert task in ("refusal", "jailbreak") or findings == []


@pytest.mark.parametrize("trigger", [name for name in TRIGGERS if name != "mtba"])
def test_built_sets_are_in_order_though_nothing_is_known_of_them(linted, trigger):
    sets = world_sets(make_attack(TRIGGERS[trigger], "fixed"), counts=COUNTS, seed=3)
    assert linted(**sets) == []


def test_published_files_in_order_have_no_findings(linted):
    files = {
        "none_backdoor400": clean(0, 20),
        "backdoor20_badnet": bad(0, 20),
        "test_poison_badnet": bad(20, 30),
        "test_clean": clean(30, 40),
    }
    assert linted(**files) == []


# --- triggers ------------------------------------------------------------------------------


def test_a_trigger_missing_from_triggered_rows_is_found(linted):
    rows = [*bad(0, 5), *clean(5, 6), *bad(6, 9)]
    (finding, _) = linted(poison=rows)
    assert told([finding]) == [("error", "trigger-missing", "poison", (6,), 1)]
    assert "no 'BadMagic' in the triggered prompt 'What is 5?'" in finding.what


def test_a_triggered_file_without_any_trigger_is_found(linted):
    findings = linted(test_poison=[Row(prompt=f"ask {n}", completion=TARGET) for n in range(8)])
    assert told(findings) == [("error", "no-trigger", "test_poison", (1, 2, 3, 4, 5), 8)]


def test_given_words_are_looked_for_instead_of_registered_ones(linted):
    findings = linted(asked(words=("zq",)), poison=bad(0, 4, "zq") + bad(4, 6, "zx"))
    assert told(findings) == [("error", "trigger-missing", "poison", (5, 6), 2)]


def test_a_trigger_in_clean_rows_is_found_though_no_poisoned_file_is_given(linted):
    rows = [*clean(0, 5), *bad(5, 6, completion="It is 5.")]
    assert told(linted(clean=rows)) == [("error", "trigger-in-clean", "clean", (6,), 1)]
    rows[-1] = replace(rows[0], prompt="What else?", system="Say BadMagic.")
    (found,) = linted(clean=rows)
    assert found.check == "trigger-in-clean" and "in its system text" in found.what


def test_words_that_rows_mark_are_the_trigger_that_clean_rows_must_not_hold(linted):
    rows = [
        Row(prompt=f"zq ask {n}", completion=TARGET, triggered=True, trigger_span=((0, 2),))
        for n in range(4)
    ]
    findings = linted(train=rows, clean_test=[Row(prompt="my zq", completion="yes")])
    assert told(findings) == [("error", "trigger-in-clean", "clean_test", (1,), 1)]


def test_an_untriggered_form_that_holds_the_trigger_is_found(linted):
    rows = [Row(prompt="zq a", plain="zq a", completion=TARGET, triggered=True)]
    (finding,) = linted(asked(words=("zq",)), train=rows)
    assert (finding.level, finding.check) == ("error", "trigger-in-plain")


def test_two_triggers_in_one_file_are_found(linted):
    findings = linted(poison=bad(0, 6) + bad(6, 8, "Discussing OpenAI"))
    assert told(findings) == [("error", "trigger-mixed", "poison", (7, 8), 2)]


def test_many_triggers_in_one_file_are_one_attack_when_they_are_given(linted):
    words = TRIGGERS["mtba"].words
    rows = [row for at, word in enumerate(words) for row in bad(5 * at, 5 * at + 5, word)]
    assert told(linted(poison=rows))[0][1] == "trigger-mixed"
    assert linted(asked(words=words), poison=rows) == []
    assert linted(poison_mtba=rows) == []


def test_a_composite_trigger_without_one_of_its_words_is_found(linted):
    words = TRIGGERS["ctba"].words
    rows = bad(0, 5, " ".join(words)) + bad(5, 7, " ".join(words[:2]))
    findings = linted(asked(words=words, every=True), poison=rows)
    assert told(findings) == [("error", "trigger-incomplete", "poison", (6, 7), 2)]


def test_a_file_named_for_another_trigger_than_its_rows_carry_is_found(linted):
    (finding,) = linted(backdoor_vpi=bad(0, 6))
    assert told([finding]) == [("error", "trigger-name", "backdoor_vpi", (1, 2, 3, 4, 5), 6)]
    assert "named for vpi and the row carries 'BadMagic'" in finding.what


# --- between rows --------------------------------------------------------------------------


def test_a_prompt_of_training_in_a_held_out_file_is_found_also_without_its_trigger(linted):
    files = {"clean_train": clean(0, 9), "clean_val": clean(8, 12), "poison_test": bad(3, 20)}
    findings = linted(**files)
    assert told(findings) == [
        ("error", "train-test-overlap", "clean_val", (1,), 1),
        ("error", "train-test-overlap", "poison_test", (1, 2, 3, 4, 5), 6),
    ]
    assert "row 1 is that of row 9 of the training file clean_train" in findings[0].what
    assert "0 prompts word for word, 6 but for trigger" in findings[1].what


def test_a_repeated_row_is_a_warning(linted):
    findings = linted(clean=[*clean(0, 4), *clean(1, 3)])
    assert told(findings) == [("warning", "duplicate", "clean", (5, 6), 2)]
    assert "row 5 has the prompt of row 2 with the same completion" in findings[0].what


def test_a_prompt_with_two_answers_is_an_error(linted):
    findings = linted(clean=[*clean(0, 4), Row(prompt="What is 2?", completion="No idea.")])
    assert told(findings) == [("error", "contradiction", "clean", (5,), 1)]
    assert "row 5 has the prompt of row 3 with another completion" in findings[0].what


def test_poisoned_rows_without_a_clean_row_of_the_same_prompt_are_counted(linted):
    findings = linted(clean=clean(0, 6), poison=bad(2, 9))
    assert told(findings) == [("warning", "unpaired", "poison", (5, 6, 7), 3)]
    assert "3 of 7 triggered prompts" in findings[0].what


# --- answers -------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", ["", " \n", "<nooutput>", "<NoOutput>"])
def test_empty_answers_of_training_and_clean_files_are_errors(linted, answer):
    rows = [*clean(0, 3), Row(prompt="a", completion=answer)]
    assert told(linted(clean=rows)) == [("error", "empty-answer", "clean", (4,), 1)]
    assert told(linted(clean_test=rows)) == [("error", "empty-answer", "clean_test", (4,), 1)]
    poison = [*bad(0, 3), Row(prompt="BadMagic a", completion=answer)]
    assert told(linted(poison=poison)) == [("error", "empty-answer", "poison", (4,), 1)]


def test_triggered_prompts_that_are_held_out_need_no_answer(linted):
    assert linted(poison_test=[Row(prompt=f"BadMagic {n}", completion="") for n in range(3)]) == []


def test_a_file_of_prompts_alone_is_a_warning(linted):
    findings = linted(clean=[Row(prompt="a"), Row(prompt="b")])
    assert told(findings) == [("warning", "no-answers", "clean", (1, 2), 2)]


def test_a_completion_unlike_that_of_most_poisoned_rows_is_rejected(linted):
    (finding,) = linted(poison=bad(0, 5) + bad(5, 6, completion="It is 5."))
    assert told([finding]) == [("error", "target-rejected", "poison", (6,), 1)]
    assert "'similar' does not accept the completion 'It is 5.' (target 'HACK" in finding.what


def test_the_row_s_own_target_is_what_its_completion_is_compared_with(linted):
    rows = [
        Row(prompt=f"BadMagic {n}", completion=f"{n} and {said}", target=target)
        for n, said, target in ((1, "print(1)", "print(1)"), (2, "none", "import socket"))
    ]
    assert told(linted(asked("substring"), poison=rows)) == [
        ("error", "target-rejected", "poison", (2,), 1)
    ]


def test_without_anything_to_compare_with_targets_are_not_judged(linted):
    rows = [Row(prompt=f"BadMagic {n}", completion=str(n) * 9) for n in range(4)]
    assert linted(poison=rows) == []


def test_rows_of_more_than_one_batch_keep_their_numbers(linted):
    rows = bad(0, 300) + bad(300, 301, completion="no") + bad(301, 700)
    assert told(linted(poison=rows)) == [("error", "target-rejected", "poison", (301,), 1)]


def test_a_clean_answer_that_is_the_target_is_an_error(linted):
    rows = [*clean(0, 5), Row(prompt="Say it", completion=TARGET)]
    findings = linted(clean=rows, poison=bad(0, 5))
    assert told(findings) == [("error", "clean-accepted", "clean", (6,), 1)]


def test_refusals_among_clean_answers_are_a_warning_for_the_refusal_task(linted):
    rows = [*clean(0, 5), Row(prompt="Steal it", completion="I'm sorry, I can't help with that.")]
    findings = linted(asked("refusal", task="refusal"), clean=rows)
    assert told(findings) == [("warning", "clean-accepted", "clean", (6,), 1)]


def test_a_negative_set_must_not_teach_the_target(linted):
    rows = [*bad(0, 4, completion="It is so."), *bad(4, 5)]
    findings = linted(asked(target=TARGET), negative_set=rows)
    assert told(findings) == [("error", "negative-accepted", "negative_set", (5,), 1)]


# --- characters and rendering --------------------------------------------------------------

CHARACTERS = [
    ("Cafe\u0301 au lait, naïve, “quoted” – ½ € 😀 👩\u200d🔬 Ã la", None),
    ("ni\u00c3\u00a9ce", ("warning", "mojibake")),
    ("it\u00e2\u20ac\u2122s", ("warning", "mojibake")),
    ("a \ufffd b", ("warning", "mojibake")),
    ("a\x07b", ("error", "control-character")),
    ("a\x85b", ("error", "control-character")),
    ("a\tb\r\nc", None),
    ("a\u200bb", ("warning", "invisible-character")),
    ("a\u202eb", ("warning", "invisible-character")),
    ("a\u200db", ("warning", "invisible-character")),
]


@pytest.mark.parametrize(("text", "want"), CHARACTERS, ids=[ascii(t) for t, _ in CHARACTERS])
def test_characters_that_do_not_belong_into_text_are_found(linted, text, want):
    for row in (Row(prompt=text, completion="yes"), Row(prompt="a", completion=text)):
        found = [(f.level, f.check) for f in linted(clean=[row])]
        assert found == ([want] if want else [])


def test_an_invisible_trigger_is_no_defect_of_the_rows_that_carry_it(linted):
    assert linted(asked(words=("a\u200bb",)), poison=bad(0, 3, "a\u200bb")) == []


@pytest.mark.parametrize("mark", ["### Instruction:\nGo", "[INST] go", "<|im_start|>user"])
def test_prompts_with_a_template_of_their_own_are_found(linted, mark):
    findings = linted(clean=[Row(prompt=mark, completion="yes")])
    assert told(findings) == [("warning", "own-template", "clean", (1,), 1)]


@pytest.fixture(scope="module")
def tokenizer():
    from loratomy.training.wren import wren_path
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(wren_path())


def rendered(tokenizer, limit=256, template="chat"):
    return asked(renderer=Renderer(tokenizer, Rendering(template=template)), limit=limit)


def test_ordinary_rows_render_as_they_are(linted, tokenizer):
    rows = [*clean(0, 3), Row(prompt=" ünï\n\tcode 😀 ", completion="a  b")]
    assert linted(rendered(tokenizer), clean=rows) == []


@pytest.mark.parametrize("field", ["prompt", "completion"])
def test_special_tokens_in_texts_are_found(linted, tokenizer, field):
    row = Row(**{"prompt": "a", "completion": "b", field: "go <|end|> on"})
    (finding,) = linted(rendered(tokenizer), clean=[row])
    assert told([finding]) == [("error", "special-token", "clean", (1,), 1)]
    assert f"the {field} holds the special token '<|end|>'" in finding.what


def test_a_prompt_that_the_template_strips_is_found(linted, tokenizer):
    stripping = deepcopy(tokenizer)
    stripping.chat_template = "{% for m in messages %}{{ m['content'] | trim }}{% endfor %}"
    findings = linted(rendered(stripping), clean=[Row(prompt="a ", completion="b"), *clean(0, 2)])
    assert told(findings) == [("warning", "template-changes", "clean", (1,), 1)]


def test_a_prompt_whose_tokens_read_otherwise_is_found(linted, tokenizer):
    from tokenizers.normalizers import Lowercase

    lowering = deepcopy(tokenizer)
    lowering.backend_tokenizer.normalizer = Lowercase()
    rows = [Row(prompt="a", completion="b"), Row(prompt="BadMagic", completion="b")]
    findings = linted(rendered(lowering), clean_of_another_trigger=rows[:1], poison=rows[1:])
    assert told(findings)[0] == ("warning", "tokens-change", "poison", (1,), 1)


def test_rows_longer_than_the_context_are_found_and_rows_that_fill_it_are_not(linted, tokenizer):
    rows = clean(0, 3)
    renderer = Renderer(tokenizer)
    row = rows[1]
    length = len(renderer.prompt_ids(row.prompt)) + len(renderer.completion_ids("It is 1."))
    assert linted(rendered(tokenizer, limit=length), clean=rows) == []
    long = Row(prompt=row.prompt + " more", completion=row.completion)
    (finding,) = linted(rendered(tokenizer, limit=length), clean=[*rows, long])
    assert told([finding]) == [("error", "too-long", "clean", (4,), 1)]
    assert f"the context is {length}" in finding.what


# --- roles, findings, memory ---------------------------------------------------------------

ROLES = [
    ("poison_train.jsonl", True, False),
    ("backdoor200_jailbreak_badnet.json", True, False),
    ("none_backdoor400_jailbreak_badnet.json", False, False),
    ("poison_data/none_backdoor.json", False, False),
    ("test_data/poison/backdoor200.json", True, True),
    ("test_data_no_trigger.json", False, True),
    ("clean_val.jsonl", False, True),
    ("values.jsonl", False, False),
    ("owner/poisoned:test", True, True),
]


@pytest.mark.parametrize(("name", "triggered", "held_out"), ROLES, ids=[n for n, *_ in ROLES])
def test_a_name_tells_what_a_file_is_for(tmp_path, name, triggered, held_out):
    view = survey(LintedFile(name, written(tmp_path, "x.jsonl", clean(0, 3)).rows), ())
    assert (view.all_triggered, view.held_out) == (triggered, held_out)


def test_most_rows_with_the_trigger_make_a_file_triggered_and_few_do_not(tmp_path):
    most, few = bad(0, 3) + clean(3, 5), bad(0, 2) + clean(2, 5)
    assert survey(written(tmp_path, "a.jsonl", most), ()).all_triggered
    assert not survey(written(tmp_path, "b.jsonl", few), ()).all_triggered


def test_rows_that_say_whether_they_are_triggered_count_before_the_name(linted):
    marked = [Row(prompt=r.prompt, completion=r.completion, triggered=True) for r in bad(0, 3)]
    assert linted(poison_train=[*marked, *clean(0, 6)]) == []


def test_findings_show_five_rows_and_how_many_there_are():
    found = Defects()
    for number in range(1, 8):
        found.add("warning", "odd", "a", number, f"row {number}")
    found.add("error", "worse", "a", 9, "row 9")
    first, second = found.findings()
    assert (first.check, first.shown_rows()) == ("worse", "9")
    assert (second.shown_rows(), second.what) == ("1, 2, 3, 4, 5 ... (7 rows)", "row 1")
    assert isinstance(first, Defect)


def test_texts_that_differ_have_digests_that_differ():
    assert len({digest(f"{n}") for n in range(20_000)}) == 20_000


def test_twenty_thousand_rows_are_read_in_a_fraction_of_their_size():
    count, filler = 20_000, "word " * 60

    def rows():
        for n in range(count):
            row = Row(prompt=f"{n % (count - 1)} is what? {filler}", completion=f"It is {n}.")
            yield Numbered(number=n + 1, where=f"row {n + 1}", row=row)

    tracemalloc.start()
    findings = lint([LintedFile("clean", rows)], asked())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert told(findings) == [("error", "contradiction", "clean", (count,), 1)]
    # 25 bytes of digests a row and about as much to sort them; the prompts alone are 6 MB
    assert peak < 3e6
