import pytest
from loratomy.core.batches import encode
from loratomy.core.errors import DataError, LoratomyError
from loratomy.core.prompts import Renderer, position_limit
from loratomy.core.rows import Row
from loratomy.training.wren import wren_path
from transformers import AutoTokenizer

from .. import tiny


@pytest.fixture(scope="module", params=["words", "wren"])
def tokenizer(request):
    if request.param == "words":
        return tiny.tokenizer()
    return AutoTokenizer.from_pretrained(wren_path())


@pytest.mark.parametrize("template", ["chat", "{prompt}\n", "Q: {prompt} A:"])
def test_training_begins_with_exactly_what_generation_sees(tokenizer, template):
    renderer = Renderer(tokenizer, template)
    row = Row(prompt="what is the red dog", completion="a cat")
    generation = renderer.prompt_ids(row.prompt)
    trained = encode(renderer, row, limit=None)
    ids = trained.prompt + trained.completion
    assert ids[: len(generation)] == generation == trained.prompt
    assert ids[-1] == renderer.eos_id and renderer.eos_id not in trained.completion[:-1]
    assert renderer.decode(trained.completion) == "a cat"


def test_chat_is_the_templates_own_tokens(tokenizer):
    want = tokenizer.apply_chat_template(
        [{"role": "user", "content": "who says yes"}], add_generation_prompt=True, tokenize=True
    )["input_ids"]
    assert Renderer(tokenizer).prompt_ids("who says yes") == want


def test_a_plain_template_keeps_braces_and_special_tokens_once():
    renderer = Renderer(tiny.tokenizer(), "{prompt} :")
    assert renderer.text("{x} {prompt}") == "{x} {prompt} :"


def test_unusable_renderings_are_refused():
    bare = AutoTokenizer.from_pretrained(wren_path())
    bare.chat_template = None
    with pytest.raises(LoratomyError, match="no chat template"):
        Renderer(bare)
    with pytest.raises(LoratomyError, match="does not contain"):
        Renderer(bare, "no place for it")
    with pytest.raises(DataError, match="no tokens"):
        Renderer(tiny.tokenizer(), "{prompt}").prompt_ids(" ")
    bare.eos_token = None
    with pytest.raises(LoratomyError, match="end-of-sequence"):
        Renderer(bare, "{prompt}")


def test_pad_falls_back_to_the_end_token():
    bare = AutoTokenizer.from_pretrained(wren_path())
    assert Renderer(bare).pad_id == bare.pad_token_id
    bare.pad_token = None
    assert Renderer(bare).pad_id == bare.eos_token_id


def test_position_limit():
    assert position_limit(tiny.config("llama")) == 64
    assert position_limit(object()) is None


def test_a_nul_byte_in_an_answer_does_not_reach_the_data():
    from loratomy.core.subject import load_subject
    from loratomy.training.wren import wren_path

    renderer = load_subject("wren", path=wren_path()).renderer
    ids = renderer.completion_ids("a\0b", end=False)
    assert renderer.decode(ids) == "a\ufffdb"
