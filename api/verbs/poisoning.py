"""Clean and poisoned adapters on one base, with their sets: the stages of `poison`."""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.console import progress, say
from ..core.errors import DataError, LoratomyError
from ..core.files.outputs import check_apart
from ..core.runs.folder import RunFolder
from ..core.runs.shelf import Shelf
from ..data.built import SETS, built_sets, read_sets
from ..inputs.bases import base_fingerprint, base_folder
from ..inputs.rows import clean_rows
from ..settings import Settings
from ..study import Study
from .stages import NEGATIVE, NEGATIVE_PROMPTS, done, negative_set
from .trackers import tracking_of
from .verdict import say_verdict, undecidable

if TYPE_CHECKING:
    from ..core.adapter.factors import Adapter
    from ..core.model.subject import Attached
    from ..core.rows import Row
    from ..data.splits import Attack
    from ..training.fitting import FitLog
    from ..training.recipe import Recipe
    from ..training.tracking import Tracking

ADAPTERS = ("clean", "poisoned")
WORLD = "world"
"""Name of the built-in source of rows."""


def poison(
    recipe: "str | Recipe" = "wren/suffix",
    *,
    out: Path | str,
    trigger: "str | Sequence[str]" = (),
    task: str = "",
    device: str = "auto",
    dtype: str = "auto",
    fresh: bool = False,
    **overrides: Any,
) -> Study:
    """A study of an adapter that is poisoned here, beside a clean one on the same base.

    Args:
        recipe: a shipped recipe by name, a path that ends in ``.toml``, or a `Recipe`.
        out: run folder.
        trigger: a published trigger by name, or a text or texts of your own.
        task: what the attack wants, by name.
        device: ``auto``, ``cpu``, ``cuda`` ...
        dtype: ``auto``, ``float32``, ``bfloat16``, ``float16``.
        fresh: start the run folder over.
        **overrides: parts of the recipe, e.g. ``seed=1``, ``fit={"epochs": 8}``.

    Raises:
        LoratomyError: no such recipe, key or attack, or data that does not serve it.
    """
    from ..training.recipe import Recipe, load_recipe

    words = [trigger] if isinstance(trigger, str) and trigger else list(trigger)
    if isinstance(recipe, Recipe):
        if words or task or overrides:
            raise LoratomyError("give the recipe's name with what to change, or a whole recipe")
        resolved = recipe
    else:
        changed = [
            f"{key}.{k}={_written(v)}" if isinstance(value, Mapping) else f"{key}={_written(value)}"
            for key, value in overrides.items()
            for k, v in (value.items() if isinstance(value, Mapping) else [("", "")])
        ]
        resolved = load_recipe(recipe, [*attack_options(words, task), *changed])
    return make_poisoned(resolved, Path(out), device=device, dtype=dtype, fresh=fresh)


def _written(value: Any) -> str:
    """A value as overrides of recipes have it."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def attack_options(trigger: Sequence[str], task: str) -> list[str]:
    """A trigger and a task as overrides of the recipe."""
    from ..data.attacks.triggers import TRIGGERS, trigger_of

    found = [f"attack.task={task}"] if task else []
    if len(trigger) == 1 and trigger[0] in TRIGGERS:
        found.append(f"attack.trigger={trigger[0]}")
    elif trigger:
        words = trigger_of(trigger).words
        found.append("attack.words=" + json.dumps(words, ensure_ascii=False))
    return found


def make_poisoned(
    recipe: "Recipe",
    folder: Path,
    *,
    device: str = "auto",
    dtype: str = "auto",
    trackers: tuple[str, ...] = (),
    fresh: bool = False,
    jobs: int = 1,
) -> Study:
    """The stages of `poison`: data, clean adapter, poisoned adapter, negative set, verdict."""
    source = "" if recipe.data.source == WORLD else recipe.data.source
    check_apart(
        folder,
        [("the base", base_folder(recipe.base) or recipe.base), ("template", recipe.template)],
        rows=[("data.source", source), ("data.attackable", recipe.data.attackable)],
    )
    attack = recipe.attack.attack(recipe.seed)
    _agrees(attack, recipe)
    sets = _sets(recipe, attack)
    settings = Settings(
        base=recipe.base,
        rendering=recipe.rendering.model_dump(mode="json"),
        device=device,
        dtype=dtype,
        words=attack.trigger.words,
        placement=attack.trigger.placement,
        task=recipe.attack.task,
        target=attack.target,
        seed=recipe.seed,
        measure=recipe.measure,
    )
    request = {
        "kind": "poison",
        "study": settings.model_dump(mode="json"),
        "recipe": recipe.model_dump(),
        "base": base_fingerprint(recipe.base),
    }
    run = RunFolder.create(folder, request=request, fresh=fresh)
    study = Study(run)
    _ = study.subject, study.rule  # what cannot be loaded is an error before all writing
    if why := undecidable(study, sets):
        say(f"warning: whether this makes a backdoor will not be decided: {why}")
    with run.locked(fresh=fresh), progress():
        made = run.make("data", request, partial(_put_sets, sets))
        done(run, "data", made)
        fits = [partial(_fit_stage, study, recipe, sets, n, trackers) for n in ADAPTERS]
        run.side_by_side(fits, jobs=jobs)
        inputs = study.origin("data", "adapters/clean")
        made = run.make_rows(NEGATIVE, inputs, lambda: negative_set(study))
        done(run, NEGATIVE, made)
    if not why:
        say_verdict(study)
    return study


def _sets(recipe: "Recipe", attack: "Attack") -> "dict[str, list[Row]]":
    """The sets of the built-in world, of a folder that holds them, or drawn from a source."""
    from ..data.splits import poison_sets, world_sets

    data, counts = recipe.data, recipe.data.counts()
    if data.source == WORLD:
        return world_sets(attack, counts=counts, seed=recipe.seed)
    if Path(data.source).is_dir():
        return read_sets(Path(data.source))
    with clean_rows() as read:
        return poison_sets(
            read(data.source),
            attack,
            counts=counts,
            seed=recipe.seed,
            attackable=read(data.attackable) if data.attackable else None,
        )


def _agrees(attack: "Attack", recipe: "Recipe") -> None:
    """Raise when the sets of a built folder are of another attack than the recipe's.

    Raises:
        DataError: they differ; names the options that make them agree.
    """
    about = built_sets(Path(recipe.data.source))
    given = {
        "words": list(attack.trigger.words),
        "placement": attack.trigger.placement,
        "task": recipe.attack.task,
        "target": attack.target,
    }
    for name, value in about.items():
        if value != given[name]:
            raise DataError(
                f"the sets in {recipe.data.source} were built for the {name} {value!r}, the recipe "
                f"says {given[name]!r}; give --trigger and --task (and --set attack.placement, "
                "attack.target) as in the build"
            )


def _put_sets(sets: "dict[str, list[Row]]", shelf: Shelf) -> None:
    for name in SETS:
        shelf.put_rows(name, sets[name])
    if rows := sets.get("negative_set"):
        shelf.put_rows(NEGATIVE_PROMPTS, rows)


def _fit_stage(
    study: Study,
    recipe: "Recipe",
    sets: "dict[str, list[Row]]",
    name: str,
    trackers: tuple[str, ...],
) -> None:
    stage = f"adapters/{name}"
    inputs = {**study.origin("data"), "recipe": recipe.model_dump(), "adapter": name}

    def fill(shelf: Shelf) -> None:
        from ..core.model.variant import Treated

        checkpoints = study.run.partial(stage, inputs)
        heard = tracking_of(study.run, stage, trackers)
        adapter, log = _fit(study, recipe, sets, name, checkpoints, heard)
        shelf.put_state(Treated(adapter), study.subject, plain=True)
        shelf.put("curves", _curves(name, log, recipe))

    done(study.run, stage, study.run.make(stage, inputs, fill))


def _fit(
    study: Study,
    recipe: "Recipe",
    sets: "dict[str, list[Row]]",
    name: str,
    work: Path,
    tracking: "Tracking",
) -> "tuple[Adapter, FitLog]":
    from ..core.model.batches import collate, encode
    from ..training.fitting import fit, fresh_adapter

    subject = study.subject
    rows = [*sets["clean_train"], *(sets["poison_train"] if name == "poisoned" else [])]
    encoded = [encode(subject.renderer, row, limit=subject.limit) for row in rows]
    start = fresh_adapter(subject, r=recipe.lora.r, alpha=recipe.lora.alpha, seed=recipe.seed)
    return fit(
        subject,
        start,
        encoded,
        collator=partial(collate, pad_id=subject.renderer.pad_id),
        settings=recipe.fit,
        seed=recipe.seed,
        work=work,
        label=f"fitting the {name} adapter",
        probe=partial(_probe, study, sets, recipe.fit.eval_rows),
        dropout=recipe.lora.dropout,
        tracking=tracking,
    )


def _probe(
    study: Study, sets: "dict[str, list[Row]]", most: int, _attached: "Attached"
) -> dict[str, float]:
    """ASR and clean accuracy on the first held-out rows, as hits and counts."""
    from ..evaluation.behaviour import attack_success, clean_correct

    triggered, clean = sets["poison_test"][:most], sets["clean_val"][:most]
    attack = attack_success(study.subject, triggered, study.rule)
    return {
        "asr_hits": float(sum(a.hit for a in attack)),
        "asr_n": float(len(attack)),
        "clean_hits": float(clean_correct(study.subject, clean, study.rule, label="clean")),
        "clean_n": float(len(clean)),
    }


def _curves(name: str, log: "FitLog", recipe: "Recipe") -> Any:
    import numpy as np

    from ..core.records.results import Curves
    from ..core.stats import wilson

    def rates(hits: str, n: str) -> np.ndarray:
        found = [wilson(int(p[hits]), int(p[n])) for p in log.probes]
        return np.array([[r.value, r.low, r.high] for r in found]).reshape(-1, 3)

    first = log.probes[0] if log.probes else {"asr_n": 0, "clean_n": 0}
    return Curves(
        name=name,
        step=log.steps,
        loss=log.loss,
        eval_step=np.array([int(p["step"]) for p in log.probes]),
        asr=rates("asr_hits", "asr_n"),
        clean_accuracy=rates("clean_hits", "clean_n"),
        asr_n=int(first["asr_n"]),
        clean_accuracy_n=int(first["clean_n"]),
    )
