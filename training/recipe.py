"""Recipes: TOML in, frozen models out; unknown keys are errors that name the nearest known one."""

import tomllib
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import (
    BeforeValidator,
    Field,
    StringConstraints,
    ValidationError,
)

from ..core.config import Config
from ..core.errors import LoratomyError
from ..core.files.jsonfiles import why_not
from ..core.files.tomlfiles import check_values, parsed_toml, read_toml
from ..core.registry import nearest
from ..core.rendering.rendering import CHAT, Rendering, given_template
from ..data.attacks.triggers import TRIGGERS
from ..data.splits import Attack, make_attack

Text = Annotated[str, StringConstraints(strict=True, min_length=1)]
"""A string that stays exactly what was written: ``012`` and ``no`` are text."""


def _listed(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


Words = Annotated[tuple[Text, ...], BeforeValidator(_listed)]
"""One text or a list of them."""


class AttackPart(Config):
    """What is planted: a trigger and a task by their names, each part of them replaceable."""

    trigger: Text = "suffix"
    """One of `TRIGGERS`."""
    words: Words | None = None
    """Instead of the trigger's own words."""
    placement: Text | None = None
    """Instead of the trigger's own placement."""
    task: Text = "fixed"
    """One of `TASKS`."""
    target: Text | None = None
    """Instead of the task's own target."""

    def attack(self, seed: int) -> Attack:
        """The trigger and task with what is replaced; places drawn from the seed.

        Raises:
            LoratomyError: an unknown name, or an empty word or target.
        """
        chosen = TRIGGERS[self.trigger]
        if self.words:
            chosen = replace(chosen, words=self.words, source="your own")
        if self.placement:
            chosen = replace(chosen, placement=self.placement)
        return make_attack(chosen, self.task, target=self.target, seed=seed)


class DataPart(Config):
    """How many rows of what."""

    source: Text = "world"
    """``world`` for the built-in one, a file or hub id in any known format, or a folder made by
    ``loratomy data build``."""
    attackable: Text | None = None
    """A further source, of the rows to attack; None: those of `source`."""
    clean_train: int = Field(400, ge=1)
    poison_train: int = Field(100, ge=1)
    clean_val: int = Field(200, ge=1)
    poison_test: int = Field(100, ge=1)
    negative_set: int = Field(100, ge=0)
    """0: the prompts of ``poison_train`` serve again."""

    def counts(self) -> dict[str, int]:
        """Rows by set name."""
        return self.model_dump(exclude={"source", "attackable"})


class LoraPart(Config):
    """The shape of the adapter."""

    r: int = Field(16, ge=1, le=4096)
    alpha: float = Field(32.0, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)


class FitPart(Config):
    """How an adapter is fitted."""

    epochs: float = Field(3, gt=0)
    learning_rate: float = Field(2e-4, gt=0)
    batch_size: int = Field(8, ge=1)
    accumulate: int = Field(2, ge=1)
    warmup: float = Field(0.1, ge=0, lt=1)
    """Share of the steps over which the rate rises; then it falls as a cosine."""
    weight_decay: float = Field(0.0, ge=0)
    evaluations: int = Field(6, ge=0)
    """How often ASR and clean accuracy are recorded along training."""
    eval_rows: int = Field(40, ge=1)
    """Rows behind each of these."""


class MeasurePart(Config):
    """How behaviour is measured."""

    scorers: Text | None = None
    """Success rules, the deciding one first; None: the task's own."""
    threshold: float = Field(0.8, gt=0, le=1)
    max_new_tokens: int = Field(128, ge=1)
    temperature: float = Field(0.0, ge=0, le=10)
    top_p: float = Field(1.0, gt=0, le=1)
    samples: int = Field(1, ge=1, le=1000)
    batch_tokens: int = Field(8192, ge=1)
    """Most positions of a batch: rows x (longest prompt + new tokens)."""
    embedder: Text = "auto"
    """``auto`` (the installed offline package, else the hub), a folder, a hub id, or ``none``."""


class Recipe(Config):
    """Everything that decides a poisoned subject."""

    base: Text = "wren"
    seed: int = Field(0, ge=0, lt=2**32)
    template: str = CHAT
    """``chat`` for the tokenizer's chat template, a published form's name, a Jinja file, or a plain
    text with ``{prompt}``."""
    template_args: dict[str, Any] = Field(default_factory=dict)
    """Variables of the chat template, e.g. ``enable_thinking = false``."""
    system: str | None = None
    """System text of prompts that have none of their own."""
    attack: AttackPart = AttackPart()  # pyright: ignore[reportCallIssue]
    data: DataPart = DataPart()  # pyright: ignore[reportCallIssue]
    lora: LoraPart = LoraPart()  # pyright: ignore[reportCallIssue]
    fit: FitPart = FitPart()  # pyright: ignore[reportCallIssue]
    measure: MeasurePart = MeasurePart()  # pyright: ignore[reportCallIssue]

    @property
    def rendering(self) -> Rendering:
        """How prompts are rendered.

        Raises:
            LoratomyError: a template that is none.
        """
        return Rendering(
            template=given_template(self.template), arguments=self.template_args, system=self.system
        )


def shipped_recipes() -> list[str]:
    """Names of the recipes that come with the package, e.g. ``wren/suffix``."""
    root = Path(str(files("loratomy.training"))) / "recipes"
    return sorted(p.relative_to(root).with_suffix("").as_posix() for p in root.rglob("*.toml"))


def load_recipe(name: str, overrides: list[str] | None = None) -> Recipe:
    """The recipe of a shipped name or a TOML file, with ``key.path=value`` overrides applied.

    Raises:
        LoratomyError: no such recipe, bad TOML (duplicate keys among it), unknown or wrong keys.
    """
    path = Path(name)
    if not name.endswith(".toml"):
        if name not in shipped_recipes():
            raise LoratomyError(
                f"no recipe {name!r}; {nearest(name, shipped_recipes())} "
                "(or give a path that ends in .toml)"
            )
        path = Path(str(files("loratomy.training"))) / "recipes" / f"{name}.toml"
    raw = read_toml(path, "recipe")
    for override in overrides or []:
        _override(raw, override)
    try:
        check_values(raw)
    except ValueError as error:
        raise LoratomyError(f"recipe {path.name} with its --set: {error}") from error
    return validated(Recipe, raw, f"recipe {path.name}")


def _override(raw: dict[str, Any], override: str) -> None:
    key, found, value = override.partition("=")
    if not found or not key.strip():
        raise LoratomyError(f"--set {override[:60]!r}: write key.path=value, e.g. fit.epochs=5")
    *parents, last = key.strip().split(".")
    place = raw
    for parent in parents:
        place = place.setdefault(parent, {})
        if not isinstance(place, dict):
            raise LoratomyError(f"--set {override[:60]!r}: {parent} is not a table")
    kind = _field_type([*parents, last])
    text = kind is str or (kind == Words and not value.startswith("["))
    try:
        place[last] = value if text else parsed_toml(f"x = {value}")["x"]
    except tomllib.TOMLDecodeError:
        place[last] = value
    except ValueError as error:
        raise LoratomyError(f"--set {override[:60]!r}: {why_not(error)}") from error


def _field(model: Any, keys: list[str]) -> Any:
    """The field of a config at a path of keys; None where there is none."""
    field = None
    for key in keys:
        field = getattr(model, "model_fields", {}).get(key)
        model = field.annotation if field else None
    return field


def _field_type(keys: list[str]) -> Any:
    field = _field(Recipe, keys)
    annotation = field.annotation if field else None
    kind = next(iter(get_args(annotation)), annotation)
    return Words if kind == Words else str if kind in (str, Text) else annotation


def validated(model: type[Any], raw: dict[str, Any], what: str) -> Any:
    """A pydantic model from raw values; errors become one line each with the nearest key."""
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            known = _known_keys(model, [str(p) for p in first["loc"][:-1]])
            hint = nearest(str(first["loc"][-1]), known)
            raise LoratomyError(f"{what}: unknown key {where}; {hint}") from error
        if first["type"] == "missing":
            about = _about(model, [str(p) for p in first["loc"]])
            raise LoratomyError(f"{what}: {where} has to be given{about}") from error
        message = f"{first['msg'].removeprefix('Value error, ')} (got {first.get('input')!r})"
        raise LoratomyError(": ".join(part for part in (what, where, message) if part)) from error


def _about(model: Any, keys: list[str]) -> str:
    """The description of an option in brackets, where its config has one."""
    field = _field(model, keys)
    about = field.description if field else None
    return f" ({' '.join(about.replace('`', '').split())})" if about else ""


def _known_keys(model: Any, parents: list[str]) -> list[str]:
    field = _field(model, parents)
    kind = field.annotation if field else model
    kinds = [kind, *get_args(kind)]  # a group may be left open: Group | None
    return [key for k in kinds for key in getattr(k, "model_fields", ())]
