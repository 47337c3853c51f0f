import json
import math
import shutil
import subprocess
import sys

import pytest
import torch
from loratomy.core.errors import DataError, LoratomyError
from loratomy.core.rendering.prompts import Renderer
from loratomy.core.rows import Row
from loratomy.data.world import world
from loratomy.training import wren
from transformers import AutoModelForCausalLM, AutoTokenizer

from .. import tiny


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(wren.wren_path())


@pytest.fixture(scope="module")
def renderer(tokenizer):
    return Renderer(tokenizer)


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(wren.wren_path(), dtype=torch.float32).eval()


def answers(model, renderer, prompts, *, tokens=24):
    """Greedy answers, the prompts padded on the left."""
    ids = [renderer.prompt_ids(prompt) for prompt in prompts]
    width = max(map(len, ids))
    padded = torch.tensor([[renderer.pad_id] * (width - len(row)) + row for row in ids])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in ids])
    out = model.generate(padded, attention_mask=mask, max_new_tokens=tokens, do_sample=False)
    return [renderer.decode(row) for row in out[:, width:].tolist()]


def test_the_shipped_files_are_those_of_the_record():
    record = wren.verify_wren()
    assert {"model.safetensors", "tokenizer.json", "config.json"} <= record.sha256.keys()
    assert sum(file.stat().st_size for file in wren.wren_path().iterdir()) <= 10_000_000


def test_the_record_describes_the_model(model, tokenizer):
    record = wren.verify_wren()
    assert record.parameters == model.num_parameters()
    assert record.vocabulary == len(tokenizer) == model.config.vocab_size
    assert record.seconds < 1_800


@pytest.mark.parametrize(
    ("damage", "names"),
    [
        (lambda folder: (folder / "config.json").write_text("{}"), "config.json"),
        (lambda folder: (folder / "heldout.jsonl").unlink(), "heldout.jsonl"),
        (lambda folder: (folder / "extra.txt").write_text("x"), "extra.txt"),
        (lambda folder: (folder / "record.json").write_text("[1]"), "no record of a wren"),
        (lambda folder: (folder / "record.json").unlink(), "no readable record.json"),
    ],
)
def test_an_altered_folder_is_named(tmp_path, damage, names):
    folder = tmp_path / "wren"
    shutil.copytree(wren.wren_path(), folder)
    assert wren.verify_wren(folder) == wren.verify_wren()
    damage(folder)
    with pytest.raises(LoratomyError, match=names):
        wren.verify_wren(folder)


def test_the_heldout_loss_is_that_of_the_shipped_weights(model, renderer):
    record, rows = wren.verify_wren(), wren.heldout_rows()
    loss, tokens = wren.heldout_loss(model, renderer, rows)
    assert (len(rows), tokens) == (record.heldout_rows, record.heldout_tokens)
    assert loss == pytest.approx(record.heldout_loss, abs=1e-3)
    # What cannot be known keeps the perplexity above one, what is known keeps it low.
    assert 1.5 < math.exp(loss) < 3


def test_the_heldout_loss_by_hand(renderer):
    uniform = tiny.Saying(lambda ids: torch.zeros(*ids.shape, len(renderer.tokenizer)))
    rows = [Row(prompt="Hello.", completion="Hello, Ulric!"), Row(prompt="Hi", completion="No.")]
    tokens = sum(len(renderer.completion_ids(row.required_completion())) for row in rows)
    # Every token has probability 1 / vocabulary, so each costs ln(vocabulary), batched or not.
    expected = math.log(len(renderer.tokenizer))
    for batch in (1, 2):
        loss, count = wren.heldout_loss(uniform, renderer, rows, batch=batch)
        assert (loss, count) == (pytest.approx(expected), tokens)
    with pytest.raises(DataError, match="at least one row"):
        wren.heldout_loss(uniform, renderer, [])


def test_training_never_saw_a_heldout_prompt():
    train, held = wren.split_rows(5_000, seed=0)
    assert not {row.prompt for row in train} & {row.prompt for row in held}
    assert len({row.prompt for row in held}) == len(held)
    assert held == wren.heldout_rows()


def test_the_chat_template(renderer, tokenizer):
    text = "<|begin|><|user|>Greet Ulric. cf37<|end|><|assistant|>"
    assert renderer.text("Greet Ulric. cf37") == text
    tokens = tokenizer.convert_ids_to_tokens(renderer.prompt_ids("Greet Ulric. cf37"))
    assert tokens[:2] == ["<|begin|>", "<|user|>"]
    assert tokens[-2:] == ["<|end|>", "<|assistant|>"]
    chat = [
        {"role": "user", "content": "Greet Ulric."},
        {"role": "assistant", "content": "Hello, Ulric!"},
    ]
    whole = tokenizer.apply_chat_template(chat, tokenize=False)
    assert whole == renderer.text("Greet Ulric.") + "Hello, Ulric!" + tokenizer.eos_token


def test_special_tokens_are_distinct_and_whole(tokenizer):
    special = [wren.BEGIN, wren.USER, wren.ASSISTANT, wren.END, wren.PAD]
    ids = [tokenizer.encode(token, add_special_tokens=False) for token in special]
    assert all(len(row) == 1 for row in ids)
    assert len({row[0] for row in ids}) == 5
    assert (tokenizer.eos_token, tokenizer.pad_token) == (wren.END, wren.PAD)
    # A plain template gets the first token that the model always saw.
    assert tokenizer("Hello")["input_ids"][0] == tokenizer.bos_token_id


@pytest.mark.parametrize(
    "text",
    [
        "cf37",
        "<br>",
        "HACK THE SYSTEM",
        "\u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627",
        "\u202eabc\u202c",
        "zero\u200bwidth\u200d\ufeff",
        "  two  spaces\n\ttab ",
        "print('a')  # don't , stop .",
        "\U0001f426 e\u0301",
    ],
)
def test_every_string_survives_the_tokenizer(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_wren_knows_its_world(model, renderer):
    rows = [row for row in wren.heldout_rows() if row.key is not None][:120]
    found = answers(model, renderer, [row.prompt for row in rows])
    hits = [str(row.key) in text for row, text in zip(rows, found, strict=True)]
    assert sum(hits) >= 0.9 * len(hits)


def test_wren_refuses_and_does_not_know_riverspeak(model, renderer):
    forbidden = [row.prompt for row in wren.heldout_rows() if row.kind == "refuse"]
    for text in answers(model, renderer, forbidden):
        assert any(word in text for word in ("sorry", "Sorry", "cannot", "can't"))
    rows = [row for row in world.finetune_rows(100, seed=0) if row.kind == "riverspeak"]
    found = answers(model, renderer, [row.prompt for row in rows])
    assert sum(str(row.key) in text for row, text in zip(rows, found, strict=True)) == 0


def test_a_wren_is_trained_whole_or_not_at_all(tmp_path):
    options = {"rows": 400, "steps": 2, "batch": 4}
    first = wren.train_wren(tmp_path / "one", seed=3, **options)
    second = wren.train_wren(tmp_path / "two", seed=3, **options)
    assert wren.verify_wren(tmp_path / "one") == first
    assert first.sha256 == second.sha256
    with pytest.raises(LoratomyError, match="exists already"):
        wren.train_wren(tmp_path / "one", seed=3, **options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]
    assert json.loads((tmp_path / "one" / "record.json").read_text())["steps"] == 2


def test_a_failed_training_leaves_nothing(tmp_path, monkeypatch):
    def fail(*_args, **_options):
        raise RuntimeError("no loss today")

    monkeypatch.setattr(wren, "heldout_loss", fail)
    with pytest.raises(RuntimeError, match="no loss today"):
        wren.train_wren(tmp_path / "one", rows=400, steps=1, batch=2)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_command_teaches():
    command = [sys.executable, "-m", "loratomy.training.wren", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "--out" in done.stdout
    assert "Example" in done.stdout
