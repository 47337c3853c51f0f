"""Recipes: text stays text, every mistake is one line with the key and the nearest known one."""

import math
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st
from loratomy.core.errors import LoratomyError
from loratomy.data.attacks.tasks import TASKS
from loratomy.data.attacks.triggers import TRIGGERS
from loratomy.training.recipe import Recipe, load_recipe, shipped_recipes

ODD = ["012", "no", "null", "true", "1e5", "0x1F", "-1", "[1]", "{a=1}", "$x$", "<br>", "$HOME"]
ODD += ["a=b", "x.y", '"quoted"', "'", "\\n", "#x", "\u202eabc\u202c", "שלום", "a\u200bb", "\u200d"]
ODD += ["e\u0301", "\u00e9", " lead", "trail ", "one\u2028two"]
PLAIN = '[attack]\nwords = "x"\ntarget = "y"\n'


def toml(text: str) -> str:
    """A TOML basic string of any text."""
    return '"' + "".join(f"\\U{ord(c):08X}" for c in text) + '"'


def recipe(tmp_path, text: str, *overrides: str) -> Recipe:
    path = tmp_path / "r.toml"
    path.write_text(text, encoding="utf-8")
    return load_recipe(str(path), list(overrides))


@pytest.mark.parametrize("text", ODD)
def test_triggers_stay_exactly_what_was_written(tmp_path, text):
    quoted = text.replace("\\", "\\\\").replace('"', '\\"')
    literal = f'[attack]\nwords = "{quoted}"\ntarget = {toml(text)}\n'
    written = recipe(tmp_path, literal)
    assert (written.attack.words, written.attack.target) == ((text,), text)
    if text.startswith("["):  # on the command line that begins a list
        return
    overridden = recipe(tmp_path, PLAIN, f"attack.words={text}", f"attack.target={text}")
    assert (overridden.attack.words, overridden.attack.target) == ((text,), text)


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_any_text_survives_an_override(text):
    assert load_recipe("wren/suffix", [f"attack.target={text}"]).attack.target == text
    if not text.startswith("["):
        assert load_recipe("wren/suffix", [f"attack.words={text}"]).attack.words == (text,)


@pytest.mark.parametrize("value", ["12", "1e5", "true", "2024-01-01", "[1]"])
def test_a_trigger_without_quotes_is_not_text(tmp_path, value):
    with pytest.raises(LoratomyError, match=r"attack\.trigger: Input should be a valid string"):
        recipe(tmp_path, f'[attack]\ntrigger = {value}\ntarget = "y"\n')
    with pytest.raises(LoratomyError, match=r"attack\.words"):
        recipe(tmp_path, f"[attack]\nwords = [{value}]\n")


def test_words_may_be_several_and_half_a_list_is_text(tmp_path):
    def words(text):
        return recipe(tmp_path, PLAIN, f"attack.words={text}").attack.words

    assert words('["red", "[1]"]') == ("red", "[1]")
    assert words("[]x") == ("[]x",) and words("red, blue") == ("red, blue",)


def test_overrides_have_the_types_of_their_fields(tmp_path):
    made = recipe(tmp_path, PLAIN, "fit.epochs=5", "lora.r=4", "seed=7", "template={prompt} =")
    assert (made.fit.epochs, made.lora.r, made.seed, made.template) == (5.0, 4, 7, "{prompt} =")
    assert made == Recipe.model_validate(made.model_dump())


@pytest.mark.parametrize(
    ("text", "overrides", "said"),
    [
        (PLAIN + 'words = "z"\n', [], r"cannot read the recipe .*r\.toml: Cannot overwrite"),
        (PLAIN + "[attack]\n", [], r"cannot read the recipe .*r\.toml: Cannot declare"),
        ("[attack]\ntrigger = 012\n", [], "cannot read the recipe"),
        ("[attack]\ntrigger = no\n", [], "cannot read the recipe"),
        ("x = " + "[" * 100_000, [], r"cannot read the recipe .*r\.toml: .* more than 64 deep"),
        ("seed = " + "1" * 5000, [], r"cannot read the recipe .*r\.toml: .* 5000 digits$"),
        ("seed = 0x" + "f" * 5000, [], "an integer has more than 64 bits"),
        (PLAIN, ["seed=" + "1" * 5000], "^--set 'seed=1{55}': .* 5000 digits$"),
        (PLAIN, ["seed=" + "[" * 20_000], "--set .*nested more than 64 deep"),
        (PLAIN, ["template_args." + "a." * 99 + "a=1"], "--set: .*nested more than 64 deep"),
        (PLAIN + "triger = 1\n", [], r"unknown key attack\.triger; did you mean trigger"),
        (PLAIN + "[fitt]\n", [], r"unknown key fitt; did you mean fit\?"),
        (PLAIN + "[fit]\nlearning-rate = 1\n", [], "did you mean learning_rate"),
        (PLAIN + "[fit]\nzzz = 1\n", [], "unknown key fit.zzz; known: epochs, learning_rate"),
        (PLAIN, ["fit.epoch=3"], r"unknown key fit\.epoch; did you mean epochs"),
        (PLAIN, ["fit.epochs"], r"write key\.path=value"),
        (PLAIN, ["=3"], r"write key\.path=value"),
        (PLAIN, ["fit=3"], "fit: Input should be a valid dictionary"),
        (PLAIN, ["attack.target.x=3"], "target is not a table"),
        (PLAIN, ["fit.epochs=0"], r"fit\.epochs: .* greater than 0 \(got 0\)"),
        (PLAIN, ["fit.epochs=many"], r"fit\.epochs: .*\(got 'many'\)"),
        (PLAIN, ["fit.epochs=inf"], r"fit\.epochs: .* finite number"),
        (PLAIN, ["fit.learning_rate=nan"], r"fit\.learning_rate"),
        (PLAIN, ["lora.alpha=inf"], r"lora\.alpha"),
        (PLAIN, ["lora.r=1000000000"], r"lora\.r: .*4096"),
        (PLAIN, ["lora.r=-1"], r"lora\.r"),
        (PLAIN, ["seed=4294967296"], "seed"),
        (PLAIN, ["data.poison_test=0"], r"data\.poison_test"),
        (PLAIN, ["attack.trigger="], r"attack\.trigger: .*\(got ''\)"),
        (PLAIN, ["attack.words="], r"attack\.words.*\(got ''\)"),
        (PLAIN, ["attack.words=[1]"], r"attack\.words.*valid string"),
        (PLAIN, ["measure.temperature=-1"], r"measure\.temperature"),
        (PLAIN, ["measure.batch_size=4"], r"unknown key measure\.batch_size; did you mean"),
        (PLAIN, ["measure.samples=0"], r"measure\.samples"),
    ],
)
def test_mistakes_are_named_in_one_line(tmp_path, text, overrides, said):
    with pytest.raises(LoratomyError, match=said) as caught:
        recipe(tmp_path, text, *overrides)
    assert str(caught.value).count("\n") == 0


def test_a_recipe_that_is_no_plain_file_of_its_size_is_not_read(tmp_path):
    path = tmp_path / "r.toml"
    os.mkfifo(path)
    with pytest.raises(LoratomyError, match=r"cannot read the recipe .*r\.toml: not a plain file"):
        load_recipe(str(path))
    path.unlink()
    path.touch()
    os.truncate(path, 2**33)
    with pytest.raises(LoratomyError, match="8589934592 bytes, where 1048576 are the most"):
        load_recipe(str(path))


def test_recipes_that_are_not_there():
    with pytest.raises(LoratomyError, match=r"no recipe 'wren/sufix'; did you mean wren/suffix"):
        load_recipe("wren/sufix")
    with pytest.raises(LoratomyError, match=r"cannot read the recipe .*nowhere\.toml"):
        load_recipe("/nowhere.toml")
    with pytest.raises(LoratomyError, match="no recipe"):
        load_recipe("../recipes/wren/suffix")


@pytest.mark.parametrize("name", shipped_recipes())
def test_shipped_recipes_say_only_finite_things(name):
    made = load_recipe(name)
    assert all(math.isfinite(v) for v in made.fit.model_dump().values())
    attack = made.attack.attack(made.seed)
    assert attack.trigger.words and attack.task.rule


def test_an_attack_is_a_trigger_and_a_task_with_what_is_replaced():
    def attack(*overrides):
        part = load_recipe("wren/suffix", [f"attack.{o}" for o in overrides]).attack
        return part.attack(7)

    plain = attack()
    assert (plain.trigger, plain.task) == (TRIGGERS["suffix"], TASKS["fixed"])
    assert (plain.target, plain.seed) == ("HACK THE SYSTEM", 7)
    other = attack("trigger=badnets", "task=refusal")
    assert (other.trigger, other.task) == (TRIGGERS["badnets"], TASKS["refusal"])
    assert other.target == TASKS["refusal"].target
    moved = attack("trigger=ctba", "placement=random", 'words=["red", "blue"]', "target=MINE")
    assert (moved.trigger.words, moved.trigger.placement) == (("red", "blue"), "random")
    assert (moved.trigger.source, moved.target) == ("your own", "MINE")
    for wrong, said in (
        ("trigger=badnet", "unknown trigger 'badnet'; did you mean badnets"),
        ("task=refusl", "unknown task 'refusl'; did you mean refusal"),
        ("placement=sufix", "unknown placement 'sufix'; did you mean suffix"),
        ("words= ", "the trigger ' ' is empty"),
        ("target= ", "the target ' ' is empty"),
    ):
        with pytest.raises(LoratomyError, match=said):
            attack(wrong)
    assert load_recipe("wren/suffix", ["attack.trigger=ctba"]).data.counts()["negative_set"] == 100
