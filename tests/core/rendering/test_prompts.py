import pytest
from loratomy.core.errors import DataError, LoratomyError
from loratomy.core.model.batches import encode
from loratomy.core.rendering.prompts import Renderer, position_limit
from loratomy.core.rendering.rendering import Rendering
from loratomy.core.rows import Row
from loratomy.training.wren import wren_path
from transformers import AutoTokenizer

from ... import tiny


@pytest.fixture(scope="module", params=["words", "wren"])
def tokenizer(request):
    if request.param == "words":
        return tiny.tokenizer()
    return AutoTokenizer.from_pretrained(wren_path())


@pytest.mark.parametrize("template", ["chat", "{prompt}\n", "Q: {prompt} A:"])
def test_training_begins_with_exactly_what_generation_sees(tokenizer, template):
    renderer = Renderer(tokenizer, Rendering(template=template))
    row = Row(prompt="what is the red dog", completion="a cat")
    generation = renderer.prompt_ids(row.prompt)
    trained = encode(renderer, row, limit=None)
    ids = trained.prompt + trained.completion
    assert ids[: len(generation)] == generation == trained.prompt
    (end,) = renderer.closing_ids
    assert ids[-1] == end and end not in trained.completion[:-1]
    assert renderer.decode(trained.completion) == "a cat"


def test_chat_is_the_templates_own_tokens(tokenizer):
    want = tokenizer.apply_chat_template(
        [{"role": "user", "content": "who says yes"}], add_generation_prompt=True, tokenize=True
    )["input_ids"]
    assert Renderer(tokenizer).prompt_ids("who says yes") == want


def test_a_plain_template_keeps_braces_and_special_tokens_once():
    renderer = Renderer(tiny.tokenizer(), Rendering(template="{prompt} :"))
    assert renderer.text("{x} {prompt}") == "{x} {prompt} :"


def test_unusable_renderings_are_refused():
    bare = AutoTokenizer.from_pretrained(wren_path())
    bare.chat_template = None
    with pytest.raises(LoratomyError, match="no chat template"):
        Renderer(bare)
    with pytest.raises(LoratomyError, match="does not contain"):
        Renderer(bare, Rendering(template="no place for it"))
    with pytest.raises(DataError, match="no tokens"):
        Renderer(tiny.tokenizer(), Rendering(template="{prompt}")).prompt_ids(" ")
    bare.eos_token = None
    with pytest.raises(LoratomyError, match="end-of-sequence"):
        Renderer(bare, Rendering(template="{prompt}"))


def test_pad_falls_back_to_the_end_token():
    bare = AutoTokenizer.from_pretrained(wren_path())
    assert Renderer(bare).pad_id == bare.pad_token_id
    bare.pad_token = None
    assert Renderer(bare).pad_id == bare.eos_token_id


def test_position_limit():
    assert position_limit(tiny.config("llama")) == 64
    assert position_limit(object()) is None


def test_a_nul_byte_in_an_answer_does_not_reach_the_data():
    from loratomy.core.model.loading import load_subject
    from loratomy.training.wren import wren_path

    renderer = load_subject("wren", path=wren_path()).renderer
    ids = renderer.completion_ids("a\0b", end=False)
    assert renderer.decode(ids) == "a\ufffdb"


@pytest.mark.parametrize("template", ["chat", "{prompt}\n", "Q: {prompt} A:"])
def test_the_tokens_that_stand_for_characters_of_a_prompt(template):
    renderer = Renderer(AutoTokenizer.from_pretrained(wren_path()), Rendering(template=template))
    prompt = "BadMagic who are cf37 you? BadMagic"
    spans = [(0, 8), (17, 21), (27, 35)]
    found = renderer.tokens_at(prompt, spans)
    ids = renderer.prompt_ids(prompt)
    said = renderer.decode([ids[i] for i in found]).replace(" ", "")
    assert said == "BadMagiccf37BadMagic"
    assert found == sorted(set(found)) and renderer.tokens_at(prompt, []) == []
    others = renderer.decode([t for i, t in enumerate(ids) if i not in found])
    assert "BadMagic" not in others and "cf37" not in others and "who are" in others


def test_tokens_that_cannot_be_told_are_none():
    renderer = Renderer(
        AutoTokenizer.from_pretrained(wren_path()), Rendering(template="{prompt} or {prompt}")
    )
    assert renderer.tokens_at("cf37", [(0, 4)]) is None  # the prompt stands there twice


def test_how_many_tokens_come_before_a_character():
    renderer = Renderer(tiny.tokenizer())
    # "a red dog": one token a word; "red" begins at 2, "dog" at 6 and ends at 9.
    assert [renderer.tokens_before("a red dog", at) for at in (0, 1, 2, 5, 6, 9)] == [
        *(0, 1, 1),
        *(2, 2, 3),
    ]


# --- where a turn ends ---------------------------------------------------------------------


def wren(**changes):
    made = AutoTokenizer.from_pretrained(wren_path())
    for name, value in changes.items():
        setattr(made, name, value)
    return made


TURNS = "{% for m in messages %}<|user|>{{ m['content'] }}AFTER{% endfor %}"


@pytest.mark.parametrize(
    ("after", "closing", "stop_text"),
    [
        ("<|end|>\n", "<|end|>", ""),  # ChatML's line end is no part of the turn
        (" <|end|>", " <|end|>", ""),  # Llama 2 has a space before it
        ("{{ eos_token }}", "<|pad|>", ""),
        ("", "<|pad|>", ""),  # nothing written: the tokenizer's own end
        ("\n", "<|pad|>", ""),
        ("<|im_end|>\n", "<|im_end|>", "<|im_end|>"),  # a mark that the vocabulary lacks
    ],
)
def test_the_end_of_a_turn_is_what_the_template_writes_after_an_answer(after, closing, stop_text):
    tokenizer = wren(eos_token="<|pad|>", chat_template=TURNS.replace("AFTER", after))
    renderer = Renderer(tokenizer)
    assert renderer.closing == closing and renderer.stop_text == stop_text
    ids = renderer.completion_ids("Ada")
    assert tokenizer.decode(ids) == "Ada" + closing
    names = {tokenizer.decode([i]) for i in renderer.stop_ids}
    assert names == {"<|pad|>"} | ({"<|end|>"} if "<|end|>" in closing else set())
    assert renderer.decode(ids) == "Ada"
    if stop_text:  # what the model says after the mark is no part of the answer
        assert renderer.decode([*ids, *ids]) == "Ada"


def test_an_end_of_ones_own_goes_before_the_templates():
    renderer = Renderer(wren(), Rendering(end="<|pad|>", ends=("<|end|>",)))
    assert renderer.closing == "<|pad|>" and renderer.stop_ids == [0, 4]


# --- what a template is told ---------------------------------------------------------------

THINK = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>"
    "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}"
    "{% endif %}"
)


def test_arguments_reach_the_template():
    tokenizer = wren(chat_template=THINK)
    assert Renderer(tokenizer).text("hi") == "<|user|>hi<|end|><|assistant|>"
    off = Renderer(tokenizer, Rendering(arguments={"enable_thinking": False}))
    assert off.text("hi") == "<|user|>hi<|end|><|assistant|><think></think>"
    assert "enable_thinking" in off.variables


def test_the_clock_of_a_template_stands_still():
    clock = (
        "{{ strftime_now('%d %B %Y, %-d.%-m., %A') }} {{ date_string }} {{ messages[0].content }}"
    )
    renderer = Renderer(wren(chat_template=clock))
    assert renderer.text("hi") == "26 July 2024, 26.7., Friday 26 Jul 2024 hi"
    told = Rendering(arguments={"date_string": "1 May"}, day="2025-02-03")
    assert Renderer(wren(chat_template=clock), told).text("hi") == (
        "03 February 2025, 3.2., Monday 1 May hi"
    )


def test_a_rows_own_system_text_has_the_systems_role():
    default = (
        "{% if messages[0]['role'] != 'system' %}<|system|>Be helpful.<|end|>{% endif %}" + THINK
    )
    renderer = Renderer(wren(chat_template=default))
    assert renderer.text("hi") == "<|system|>Be helpful.<|end|><|user|>hi<|end|><|assistant|>"
    own = Row(prompt="hi", system="Be Ada.")
    assert renderer.text(own) == "<|system|>Be Ada.<|end|><|user|>hi<|end|><|assistant|>"
    run = renderer.rendered_as(system="Be brief.")
    assert run.text("hi").startswith("<|system|>Be brief.<|end|>")
    assert run.text(own) == renderer.text(own)


def test_without_a_role_the_system_text_goes_before_the_first_question():
    refuses = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    )
    renderer = Renderer(wren(chat_template=refuses + THINK))
    row = Row(prompt="go on", system="Be Ada.", history=(("user", "hi"), ("assistant", "ho")))
    assert renderer.text(row) == (
        "<|user|>Be Ada.\n\nhi<|end|><|assistant|>ho<|end|><|user|>go on<|end|><|assistant|>"
    )
    plain = Renderer(wren(), Rendering(template="Q: {prompt}\nA: "))
    assert plain.text(row) == "Be Ada.\n\nQ: hi\nA: ho\n\nQ: go on\nA: "


# --- templates that lose the prompt --------------------------------------------------------


def test_content_parts_are_tried_where_a_text_is_lost():
    parts = (
        "{% for m in messages %}<|{{ m.role }}|>{% for p in m.content %}{{ p.text }}{% endfor %}"
        "<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    renderer = Renderer(wren(chat_template=parts))
    assert renderer.text("hi there") == "<|user|>hi there<|end|><|assistant|>"
    assert renderer.closing == "<|end|>"


@pytest.mark.parametrize(
    "body",
    [
        "nothing at all",
        "{{ m['content'] | upper }}",
        "{{ m['content'][:20] }}",
        "{{ m.__class__ }}",
    ],
)
def test_a_template_that_loses_the_prompt_is_refused(body):
    losing = "{% for m in messages %}" + body + "{% endfor %}"
    with pytest.raises(LoratomyError, match=r"does not render a question.*--template"):
        Renderer(wren(chat_template=losing))


def test_a_prompt_that_a_template_changes_is_named():
    squeezing = "{% for m in messages %}{{ m['content'] | replace('cf  37', 'cf') }}{% endfor %}"
    renderer = Renderer(wren(chat_template=squeezing))
    assert renderer.text("hi cf 37") == "hi cf 37"
    with pytest.raises(DataError, match="loses or changes the prompt 'hi cf  37'"):
        renderer.text("hi cf  37")


# --- edges ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("space", "prompt", "answer"),
    [
        ("auto", "USER: hi\nASSISTANT:", " Ada<|end|>"),
        ("prompt", "USER: hi\nASSISTANT: ", "Ada<|end|>"),
        ("none", "USER: hi\nASSISTANT:", "Ada<|end|>"),
    ],
)
def test_to_which_side_the_space_before_an_answer_belongs(space, prompt, answer):
    renderer = Renderer(wren(), Rendering(template="user-assistant", space=space))
    row = Row(prompt="hi", completion="Ada")
    assert renderer.shown(row) == ("<|begin|>" + prompt, answer)
    assert renderer.decode(renderer.completion_ids("Ada")) == "Ada"
    # The lead is no part of the completion: characters of it keep their tokens.
    before = renderer.tokens_before("Ada is", 3)
    assert renderer.tokenizer.decode(renderer.completion_ids("Ada is")[:before]).strip() == "Ada"


def test_the_space_at_the_end_of_a_plain_form():
    for space, want in {
        "auto": ("hi ", "Ada"),
        "answer": ("hi", " Ada"),
        "none": ("hi", "Ada"),
    }.items():
        renderer = Renderer(wren(), Rendering(template="{prompt} ", space=space))
        prompt, answer = renderer.shown(Row(prompt="hi", completion="Ada"))
        assert (prompt, answer) == ("<|begin|>" + want[0], want[1] + "<|end|>")


def test_begins_of_sequence():
    tokenizer = wren()
    ids = {
        b: Renderer(tokenizer, Rendering(begin=b)).prompt_ids("hi") for b in ("auto", "add", "none")
    }
    assert ids["add"] == [tokenizer.bos_token_id, *ids["auto"]] and ids["auto"] == [1, *ids["none"]]
    moved = Renderer(tokenizer, Rendering(begin="add"))
    (at,) = moved.tokens_at("hi cf", [(3, 4)])[:1]
    assert tokenizer.decode(ids["add"][:at]).endswith("hi") or "cf".startswith(
        tokenizer.decode([moved.prompt_ids("hi cf")[at]]).strip()
    )


def test_a_template_that_ignores_the_generation_prompt():
    whole = "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    renderer = Renderer(wren(chat_template=whole))
    assert renderer.text("hi") == "<|user|>hi<|end|><|assistant|>"
    asked = renderer.rendered_as(opening="generation")
    assert asked.text("hi") == "<|user|>hi<|end|>"


def test_named_templates_give_the_default_one():
    named = wren(chat_template={"default": THINK, "tool_use": "{{ tools }}"})
    assert Renderer(named).text("hi") == "<|user|>hi<|end|><|assistant|>"
