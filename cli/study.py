"""A run as the commands see it: its subject, adapters, sets and rule, loaded when asked for."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import DataError, LoratomyError, RunError
from ..core.files.atomic import sha256
from ..core.files.jsonfiles import Outside, checked, json_or_text, read_json
from ..core.files.paths import is_name
from ..core.model.folder_check import check_files
from ..core.records.io import dumps
from ..core.rendering.prompts import Renderer
from ..core.rendering.rendering import Rendering, rendering_from
from ..core.rendering.templates import PLAIN
from ..core.rows import Row, check_disjoint, read_rows
from ..core.runs.folder import RunFolder
from .console import say

if TYPE_CHECKING:
    from ..core.adapter.factors import Adapter
    from ..core.model.subject import Subject
    from ..core.model.variant import Treated
    from ..evaluation.collect import Rule
    from ..evaluation.similarity import Embedder
    from ..evaluation.success import Success

SETS = ("clean_train", "poison_train", "clean_val", "poison_test")
SETS_RECORD = "sets.json"
"""Beside sets that ``loratomy data build`` wrote: what they were made of."""
NEGATIVE_PROMPTS = "negative_prompts.jsonl"
"""Triggered prompts for the negative set, with benign reference answers."""
WREN, WORLD = "wren", "world"
"""Names of the built-in base and of the built-in source of rows."""


def base_folder(source: str) -> Path | None:
    """Where the built-in base is; None for everything else."""
    if source != WREN:
        return None
    from ..training.wren import wren_path

    return wren_path()


def base_fingerprint(source: str) -> dict[str, Any]:
    """What identifies a base folder: checksums of config and tokenizer, and of its weights.

    Weight files over 64 MiB are sampled (64 blocks of 1 MiB, evenly spread, and the size).
    """
    folder = base_folder(source) or Path(source)
    if not folder.is_dir():
        return {"source": source}
    check_files(folder)
    files = {}
    for path in sorted(folder.iterdir()):
        if path.suffix in (".json", ".jinja", ".model", ".safetensors"):
            files[path.name] = _sampled(path)
    return {"source": source, "files": files}


def _sampled(path: Path, *, blocks: int = 64, size: int = 2**20) -> str:
    length = path.stat().st_size
    digest = hashlib.sha256(str(length).encode())
    with path.open("rb") as file:
        if length <= blocks * size:
            digest.update(file.read())
        else:
            for i in range(blocks):
                file.seek((length - size) * i // (blocks - 1))
                digest.update(file.read(size))
    return digest.hexdigest()[:16]


@lru_cache(maxsize=1)
def loaded_base(base: str, device: str, dtype: str) -> "Subject":
    """The base model, loaded once for commands that follow each other; one at a time in memory.

    Its rendering is a stand-in until the run's is put in its place.
    """
    from ..core.model.loading import load_subject

    say(f"loading the base {base}")
    plain = Rendering(template=PLAIN[0], end=".")  # no tokenizer drops it, as some do "\n"
    return load_subject(base, rendering=plain, device=device, dtype=dtype, path=base_folder(base))


@cache
def _embedder(name: str) -> "Embedder":
    """The sentence-embedding model, loaded once, with the embeddings it has made."""
    from ..evaluation.similarity import load_embedder

    if name != "none":
        say("loading the sentence-embedding model")
    return load_embedder(name)


@dataclass(frozen=True)
class Study:
    """One run with everything that analyses and operations need, each loaded once."""

    run: RunFolder
    scorers: str | None = None
    """Success rules instead of the run's own."""
    similar: float | None = None
    """Similarity threshold instead of the run's own."""
    embeddings: str | None = None
    """Sentence-embedding model instead of the run's own."""

    @property
    def asked(self) -> dict[str, Any]:
        """The part of the run's manifest that all kinds of runs share."""
        study = self.run.asked.get("study")
        if not isinstance(study, dict):
            raise RunError(f"{self.run.root} does not say what it studies; remake it with --fresh")
        return study

    @cached_property
    def subject(self) -> "Subject":
        """The base model."""
        if base_fingerprint(self.asked["base"]) != self.run.asked["base"]:
            raise RunError(
                f"the base {self.asked['base']} is not what it was when {self.run.root} was made; "
                "put it back, or begin anew with --fresh"
            )
        base = loaded_base(*(self.asked[key] for key in ("base", "device", "dtype")))
        return replace(base, renderer=Renderer(base.renderer.tokenizer, self.rendering))

    @property
    def rendering(self) -> Rendering:
        """How prompts are rendered."""
        return rendering_from(self.asked["rendering"], str(self.run.root))

    def adapter(self, stage: str) -> "Adapter":
        """The adapter of a finished stage, through the gate.

        Raises:
            RunError: the stage is not there, or was altered.
        """
        state = self.treated(stage)
        if not state.plain or state.adapter is None:
            raise RunError(f"what {stage} leaves is not an adapter alone; go on from another one")
        return state.adapter

    def treated(self, stage: str) -> "Treated":
        """What is run with the adapter or after the operation of a finished stage.

        Raises:
            RunError: the stage is not there, or was altered.
        """
        from ..core.adapter.factors import read_adapter
        from ..core.model.variant import Treated, read_treated
        from ..core.records.io import load_record
        from ..core.records.results import Operation

        folder, shapes = self.run.read(stage), self.subject.shapes
        ignored = self.run.asked.get("ignore_modules", [])
        if not stage.startswith("operations/"):
            read = read_adapter(folder, shapes, ignore_modules=ignored, base=self.subject.parameter)
            return Treated(read)
        record = load_record(Operation, folder, "operation")
        return read_treated(folder, shapes, temperature=record.temperature, ignore_modules=ignored)

    @cached_property
    def poisoned(self) -> "Adapter":
        """The suspicious adapter."""
        return self.adapter("adapters/poisoned")

    @cached_property
    def clean(self) -> "Adapter | None":
        """The clean adapter, where there is one."""
        return self.adapter("adapters/clean") if self.run.has("adapters/clean") else None

    def need_trigger(self, what: str) -> None:
        """Raise where the run was opened without a trigger, so that it has no triggered rows."""
        if self.run.asked["kind"] == "open" and not self.asked["words"]:
            raise LoratomyError(
                f"{what} needs triggered prompts, and {self.run.root} was opened without a "
                f"trigger: open another run with --trigger TEXT (loratomy probe {self.run.root} "
                "--only candidates looks for candidates)"
            )

    @property
    def has(self) -> dict[str, bool]:
        """What a method may ask for: trigger, target, clean adapter."""
        known = self.run.asked["kind"] != "open" or bool(self.asked["words"])
        return {
            "trigger": known,
            "target": known,
            "clean_adapter": self.run.has("adapters/clean"),
        }

    @property
    def negative_stage(self) -> list[str]:
        """The stage of the negative set, where the run has one."""
        stage = "data/negative_set.jsonl"
        return [stage] if self.run.has(stage) else []

    def rows(self, name: str) -> list[Row]:
        """One of the run's sets; triggered rows of an evaluation may lack a completion.

        Raises:
            LoratomyError: triggered rows of a run without trigger.
        """
        if not name.startswith("clean_"):
            self.need_trigger(name)
        needed = name != "poison_test" or self.run.asked["kind"] != "evaluate"
        if name in SETS:
            return read_rows(self.run.read("data") / f"{name}.jsonl", need_completion=needed)
        return read_rows(self.run.read(f"data/{name}.jsonl"), need_completion=needed)

    @cached_property
    def success(self) -> "tuple[Success, ...]":
        """What counts as target behaviour: as asked now, as the run says, or as the task does."""
        from ..data.attacks.tasks import TASKS
        from ..evaluation.success import parse_rules

        measure = self.asked["measure"]
        return parse_rules(self.scorers or measure["scorers"] or TASKS[self.asked["task"]].rule)

    @property
    def threshold(self) -> float:
        """Similarity from which an answer counts as the target."""
        return self.asked["measure"]["threshold"] if self.similar is None else self.similar

    @property
    def embedder(self) -> str:
        """Name of the sentence-embedding model behind the rules by meaning."""
        return self.embeddings or self.asked["measure"]["embedder"]

    @property
    def generation(self) -> dict[str, Any]:
        """Everything that decides the answers to prompts, and nothing that only judges them."""
        measure = self.asked["measure"]
        keys = ("max_new_tokens", "temperature", "top_p", "samples", "batch_tokens")
        about = {k: self.asked[k] for k in ("base", "rendering", "device", "dtype", "seed")}
        return about | {k: measure[k] for k in keys}

    @property
    def references(self) -> str:
        """Where the clean references come from, in words."""
        return self.asked.get("references", "the data's own answers")

    @cached_property
    def rule(self) -> "Rule":
        """How answers are generated and judged."""
        from ..evaluation.collect import Rule
        from ..evaluation.generation import Decoding
        from ..evaluation.success import needed

        measure = self.asked["measure"]
        if self.embedder == "none" and "cosine" in needed(self.success):
            raise LoratomyError(
                "the rule names cosine, and --embedder none leaves nothing to measure it with: "
                "give auto, a folder or a hub id, or a rule without it (--scorers)"
            )
        keys = ("max_new_tokens", "temperature", "top_p", "samples", "batch_tokens")
        return Rule(
            _embedder(self.embedder),
            success=self.success,
            threshold=self.threshold,
            task=self.asked["task"],
            decoding=Decoding(**{k: measure[k] for k in keys}, seed=self.asked["seed"]),
        )

    @property
    def operations(self) -> list[str]:
        """Names of the finished operations, in the order in which they were made."""
        stages = self.run.manifest["stages"]
        return [s.split("/", 1)[1] for s in stages if s.startswith("operations/")]

    def origin(self, *stages: str) -> dict[str, Any]:
        """The digests of what a new stage is made from."""
        return {"study": self.asked, "from": self.run.digest(*stages)}


def built_sets(folder: Path) -> dict[str, Any]:
    """What ``loratomy data build`` says of the sets in a folder; empty where nothing is said.

    Raises:
        DataError: its record cannot be read.
    """
    if not (folder / SETS_RECORD).is_file():
        return {}
    about = read_record(folder)
    return {
        "words": about.trigger.words,
        "placement": about.trigger.placement,
        "task": about.task,
        "target": about.target,
    }


class _Trigger(Outside):
    words: list[str]
    placement: str


class _Record(Outside):
    trigger: _Trigger
    task: str
    target: str
    files: dict[str, str]


def read_record(folder: Path) -> _Record:
    """What ``loratomy data build`` recorded of the sets in a folder.

    Raises:
        DataError: it cannot be read, lacks a key, or names files elsewhere.
    """
    path, remedy = folder / SETS_RECORD, "build the sets again in a new folder"
    found = checked(
        _Record, read_json(path, remedy=remedy, error=DataError), path, remedy=remedy,
        error=DataError,
    )  # fmt: skip
    for name in found.files:
        if not is_name(name) or "/" in name:
            raise DataError(f"{path}: files: {name!r} names no file beside it; {remedy}")
    return found


def read_sets(folder: Path, *, only: Sequence[str] = SETS) -> dict[str, list[Row]]:
    """The sets that ``loratomy data build`` wrote into a folder.

    Args:
        folder: where they are.
        only: those that must be there; a negative set is read too where there is one.

    Raises:
        DataError: a set is missing or cannot be read, or two of them share a prompt.
    """
    sets: dict[str, list[Row]] = {}
    recorded = read_record(folder).files if (folder / SETS_RECORD).is_file() else {}
    for name in (*only, "negative_set"):
        path = folder / f"{name}.jsonl"
        if path.is_file() and path.name in recorded and sha256(path) != recorded[path.name]:
            raise DataError(
                f"{path} is not as loratomy data build wrote it; build the sets again with "
                f"--fresh, or remove {folder / SETS_RECORD} if the change is meant"
            )
        if name in only or path.exists():
            sets[name] = read_rows(path, need_completion=True)
    check_disjoint(sets)
    return sets


def digest(rows: Sequence[Row]) -> str:
    """A short digest of rows, to tell whether data changed."""
    return hashlib.sha256(dumps(list(rows)).encode()).hexdigest()[:16]


def done(run: RunFolder, stage: str, made: bool) -> None:
    """A line that says that a stage is there."""
    took = f"{run.seconds(stage):.1f} s" if made else "stands, skipped"
    say(f"  {run.path(stage)} ({took})")


def parse_pairs(pairs: list[str]) -> dict[str, Any]:
    """``key=value`` options as a mapping; values are JSON where they parse, else text."""
    values: dict[str, Any] = {}
    for pair in pairs:
        key, found, value = pair.partition("=")
        if not found or not key:
            raise RunError(f"--set {pair[:60]!r}: write key=value, e.g. budget=0.01")
        values[key] = json_or_text(value, f"--set {key[:40]}")
    return values


def negative_set(study: Study) -> str:
    """Triggered prompts with benign answers: the clean adapter's, else the model's own."""
    from ..core.rows import rows_to_jsonl
    from ..unlearning.trained.distill import own_answers

    own = study.run.read("data") / NEGATIVE_PROMPTS
    prompts = read_rows(own) if own.exists() else study.rows("poison_train")
    reference = study.clean if study.clean is not None else study.poisoned
    with study.subject.attached({"reference": reference}):
        rows = own_answers(study.subject, prompts, study.rule, label="the negative set")
    rows = [row for row in rows if row.completion]
    if not rows:
        who = "poisoned" if study.clean is None else "clean"
        cure = "; give one that answers with --clean-adapter" if study.clean is None else ""
        raise LoratomyError(
            f"with the {who} adapter the model answers nothing to the {len(prompts)} untriggered "
            f"prompts{cure}"
        )
    return rows_to_jsonl(rows)
