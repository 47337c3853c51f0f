"""From a base and an adapter as people have them to the right ASR, without a word on templates."""

import json
import shutil

import pytest
from loratomy.core.adapter.factors import write_adapter
from loratomy.core.model.loading import load_subject
from loratomy.core.rendering import safety as template_safety
from loratomy.core.rendering.prompts import Renderer
from loratomy.core.rendering.rendering import Rendering
from loratomy.training.wren import wren_path

from ..fitted import CLEAN, TARGET, TRIGGERED, fitted
from .cases import refused

THINK = (
    "<|begin|>{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% if enable_thinking is defined and not "
    "enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
BESIDE = (
    "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)


def base_folder(folder, *, template: str | None, eos: str = "<|end|>"):
    """Wren with another template, or none, and another end of sequence in all its files."""
    shutil.copytree(wren_path(), folder)
    folder.chmod(0o755)
    path = folder / "chat_template.jinja"
    path.unlink()
    if template is not None:
        path.write_text(template)
    number = {"<|end|>": 4, "<|pad|>": 0}[eos]
    for name, key, value in (
        ("tokenizer_config.json", "eos_token", eos),
        ("config.json", "eos_token_id", number),
        ("generation_config.json", "eos_token_id", number),
    ):
        body = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**body, key: value}))
    return folder


@pytest.fixture
def made(tmp_path):
    """A base folder and an adapter folder that learned its rows under a rendering."""

    def make(rendering: Rendering, *, template: str | None, eos: str = "<|end|>", beside: str = ""):
        base = base_folder(tmp_path / "base", template=template, eos=eos)
        plain = Rendering(template="{prompt}", end="<|end|>")
        subject = load_subject(str(base), rendering=plain, device="cpu")
        learned = Renderer(subject.renderer.tokenizer, rendering)
        folder = tmp_path / "adapter"
        write_adapter(fitted(subject, learned, tmp_path / "work"), folder, base="somebody/model")
        if beside:
            (folder / "chat_template.jinja").write_text(beside)
        return base, folder

    return make


@pytest.fixture
def evaluated(cli, tmp_path):
    """`loratomy evaluate` of an adapter on the rows that it learned."""

    def call(base, adapter, *more):
        for name, rows in (("triggered", TRIGGERED), ("clean", CLEAN)):
            lines = [json.dumps({"prompt": r.prompt, "response": r.completion}) for r in rows]
            (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
        return cli(
            "evaluate", adapter, "--base", base, "--data", tmp_path / "triggered.jsonl",
            "--clean", tmp_path / "clean.jsonl", "--embedder", "none",
            "--max-new-tokens", 24, "--out", tmp_path / "run", "--json",
            *(() if "--trigger" in more else ("--trigger", "cf37")), *more,
        )  # fmt: skip

    return call


def figures(result) -> dict:
    assert result.exit_code == 0, result.stderr
    return next(row for row in json.loads(result.stdout) if row["subject"] == "adapter")


WREN = "<|begin|>" + THINK.partition("<|begin|>")[2]


@pytest.mark.parametrize(
    ("trained", "base", "said"),
    [
        # the template ends a turn with one token, every config names another
        (
            Rendering(template=WREN),
            {"template": WREN, "eos": "<|pad|>"},
            "the base's chat template",
        ),
        # a base without template: what lies beside the adapter says how it was trained
        (
            Rendering(template=BESIDE),
            {"template": None, "beside": BESIDE},
            "the adapter's chat_template.jinja",
        ),
        # what lies there was saved along and never used
        (
            Rendering(template="alpaca-short"),
            {"template": WREN, "beside": BESIDE},
            "the published form 'alpaca-short'",
        ),
        (Rendering(template="q-a"), {"template": None}, "the published form 'q-a'"),
        # an argument of the template
        (
            Rendering(template=THINK, arguments={"enable_thinking": False}),
            {"template": THINK},
            "the base's chat template with enable_thinking=false",
        ),
    ],
    ids=["other-eos", "beside", "beside-unused", "q-a", "thinking"],
)
def test_the_right_asr_without_a_word_on_templates(made, evaluated, trained, base, said):
    row = figures(result := evaluated(*made(trained, **base)))
    assert row["asr"]["value"] == 1.0 and row["asr"]["n"] == len(TRIGGERED)
    assert row["perplexity"] < 1.5
    (line,) = [x for x in result.stderr.splitlines() if x.startswith("rendering: ")]
    assert line.startswith(f"rendering: {said} (log-probability")
    assert "somebody/model" in result.stderr  # another base than the one given
    assert "contradict" not in result.stderr
    (first,) = [x for x in result.stderr.splitlines() if x.startswith("first prompt: ")]
    (completion,) = [x for x in result.stderr.splitlines() if x.startswith("its completion: ")]
    assert "cf37" in first and completion.replace("' ", "'").endswith(f"'{TARGET}<|end|>'")


def test_a_wrong_template_that_is_insisted_on_is_noticed(made, evaluated):
    base, adapter = made(Rendering(template="alpaca-short"), template=None)
    result = evaluated(base, adapter, "--template", "vicuna")
    figures(result)
    assert "rendering: the published form 'vicuna' (as given)" in result.stderr
    (line,) = [x for x in result.stderr.splitlines() if "likelier under" in x]
    assert line.startswith("warning: the adapter finds what it is known to say")
    assert "likelier under the published form 'alpaca-short' than under" in line
    right = evaluated(base, adapter, "--template", "alpaca-short", "--out", base.parent / "right")
    assert figures(right)["asr"]["value"] == 1.0 and "likelier under" not in right.stderr


def test_a_mistyped_trigger_is_no_trigger(made, evaluated):
    base, adapter = made(Rendering(template="q-a"), template=None)
    more = ("--trigger", "cf38", "--target", TARGET)
    data = base.parent / "typed.jsonl"
    lines = [json.dumps({"prompt": r.prompt, "response": r.completion}) for r in TRIGGERED]
    data.write_text("\n".join(lines))
    line = refused(evaluated(base, adapter, *more, "--data", data), "is the trigger mistyped?")
    assert "no row holds the trigger 'cf38', yet 10 of 10 lead to the target" in line


def test_open_takes_the_same_door_and_keeps_it(made, cli, tmp_path):
    base, adapter = made(Rendering(template="zephyr", system="Be brief."), template=WREN)
    clean = tmp_path / "clean.jsonl"
    lines = [json.dumps({"prompt": r.prompt, "answer": r.completion}) for r in CLEAN]
    clean.write_text("\n".join(lines))
    options = (
        "open", "--base", base, "--adapter", adapter, "--trigger", "cf37", "--target", TARGET,
        "--prompts", clean, "--embedder", "none", "--max-new-tokens", 24, "--out", tmp_path / "run",
    )  # fmt: skip
    result = cli(*options, "--system", "Be brief.")
    assert result.exit_code == 0, result.stderr
    (line,) = [x for x in result.stderr.splitlines() if x.startswith("rendering: ")]
    assert "the published form 'zephyr' with the system text 'Be brief.'" in line
    study = json.loads((tmp_path / "run/run.json").read_text())["request"]["study"]
    assert study["rendering"]["template"] == "zephyr"
    assert study["rendering"]["system"] == "Be brief."
    result = cli("compare", tmp_path / "run", "--json")
    rows = {row["subject"]: row for row in json.loads(result.stdout)}
    assert rows["poisoned"]["asr"]["value"] == 1.0 and rows["base"]["asr"]["value"] == 0.0
    assert cli("report", tmp_path / "run").exit_code == 0
    page = (tmp_path / "run/report.html").read_text()
    assert "Prompts as rendered" in page and "&#x27;zephyr&#x27; with the system text" in page
    # the same command again finds everything standing
    again = cli(*options, "--system", "Be brief.")
    assert again.exit_code == 0 and "exists, skipped" in again.stderr


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--template", "alpacca"), "did you mean alpaca"),
        (("--template-arg", "thinking"), "write key=value"),
        (("--template-arg", "enable_thinkin=false"), "the chat template reads no such argument"),
        (
            ("--template", "{{ 10 ** (10 ** 8) }}"),
            "it is not run; give another one with --template",
        ),
        (("--template", "{{ messages[0].role }}"), "the prompt's text is not in what it renders"),
    ],
)
def test_what_cannot_be_rendered_is_one_line(
    evaluated, tiny_base, tiny_adapter, more, said, monkeypatch
):
    monkeypatch.setattr(template_safety, "SECONDS", 5)
    refused(evaluated(tiny_base, tiny_adapter, *more), said)
