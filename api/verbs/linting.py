"""What `loratomy data lint` reads: files, hub ids and folders, and the subject's tokenizer."""

import os
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import LoratomyError
from ..core.model.folder_check import check_base
from ..core.model.tokenizer import load_error, load_tokenizer
from ..core.rendering.prompts import Renderer, position_limit
from ..core.rendering.rendering import CHAT, Rendering, given_template
from ..data.built import SETS_RECORD, built_sets
from ..inputs.bases import base_folder
from ..inputs.rows import noted

if TYPE_CHECKING:
    from ..data.lint.linter import Defect


def data_files(given: Iterable[str]) -> list[str]:
    """Files and hub ids with folders replaced by their JSONL or else their data files, each once.

    Raises:
        DataError: a folder without one.
    """
    found: dict[str, str] = {}
    for name in given:
        folder = Path(name)
        if not folder.is_dir():
            found.setdefault(os.path.realpath(name) if folder.exists() else name, name)
            continue
        inside = sorted(folder.glob("*.jsonl"))
        if not inside:
            from ..data.files.folders import data_parts

            inside = [path for paths in data_parts(folder).values() for path in paths]
        for path in inside:
            found.setdefault(os.path.realpath(path), str(path))
    return list(found.values())


def labels(files: Sequence[str]) -> list[str]:
    """Names for findings: paths from the folder that all share on, hub ids as they are.

    What the files have in common says nothing of what each is for.
    """
    local = {name: Path(os.path.abspath(name)) for name in files if Path(name).exists()}
    if not local:
        return list(files)
    shared = os.path.commonpath([path.parent for path in local.values()])
    return [local[name].relative_to(shared).as_posix() if name in local else name for name in files]


def lint_files(
    files: list[str],
    *,
    trigger: list[str],
    task: str,
    target: str,
    base: str,
    template: str | None,
    rule: str,
    threshold: float,
    embedder: str,
    format: str | None,
    columns: Sequence[str] = (),
) -> "list[Defect]":
    """The defects of data files; see ``loratomy data lint --help``.

    What is not given comes from the record of ``loratomy data build``, where all files are in
    its folder.

    Raises:
        LoratomyError: an unknown name, a rule that is none, or a base that cannot be read.
        DataError: a file that cannot be read.
    """
    from ..data.attacks.tasks import TASKS
    from ..data.attacks.triggers import Trigger, check_trigger, trigger_of
    from ..data.formats.badrows import BadRows
    from ..data.formats.columns import column_names
    from ..data.formats.formats import FORMATS, numbered_data
    from ..data.lint.linter import LintedFile, LintOptions, lint
    from ..evaluation.similarity import load_embedder
    from ..evaluation.success import judge_of, needs_target, parse_rules

    if template and not base:
        raise LoratomyError("--template needs --base, whose tokenizer renders it")
    if format is not None:
        _ = FORMATS[format]
    names = data_files(files)
    built = _built(names)
    if trigger:
        attack = trigger_of(trigger)
        check_trigger(attack, target or None)
    else:
        attack = Trigger(
            words=tuple(built.get("words", ())), placement=str(built.get("placement", "suffix"))
        )
    task = task or str(built.get("task", ""))
    target = target or str(built.get("target", ""))
    renderer, limit = _subject(base, template) if base else (None, None)
    success = parse_rules(rule or (TASKS[task].rule if task else "similar"))[0]
    by_meaning = "auto" if "cosine" in success.scorers else "none"  # else letters do
    options = LintOptions(
        words=attack.words,
        every=attack.placement == "each",
        task=task,
        target=target,
        rule=success.text,
        judge=judge_of(success, threshold, load_embedder(embedder or by_meaning), task),
        needs_target=needs_target(success),
        renderer=renderer,
        limit=limit,
    )
    with noted() as notes:
        named = column_names(columns)
        about = {"format": format, "notes": notes, "columns": named}
        sources = []
        for name, label in zip(names, labels(names), strict=True):
            bad = BadRows(may_be_all=True)
            sources.append(LintedFile(label, partial(numbered_data, name, bad=bad, **about), bad))
        found = lint(sources, options)
        named.check()
        for sentence in notes:
            notes[sentence] //= 2  # every file is read twice
    return found


def _built(names: Sequence[str]) -> dict[str, Any]:
    """The attack as ``loratomy data build`` recorded it; empty unless all files lie beside it."""
    folders = {Path(name).absolute().parent for name in names}
    if len(folders) != 1 or not (path := folders.pop() / SETS_RECORD).is_file():
        return {}
    return built_sets(path.parent)


def _subject(base: str, template: str | None) -> tuple[Renderer, int | None]:
    """The renderer and the context of a base, of which no weights are read.

    Raises:
        LoratomyError: no such base, no tokenizer, or no template.
    """
    from transformers import AutoConfig

    where = str(base_folder(base) or base)
    local = Path(where).is_dir()
    if not local and (where.startswith((".", "/", "~")) or where.count("/") != 1):
        raise LoratomyError(f"the base {where!r} is neither a folder nor a hub id (owner/name)")
    if local and not (Path(where) / "config.json").exists():
        raise LoratomyError(f"the base folder {where} holds no config.json")
    if local:
        check_base(Path(where))
    try:
        common: dict[str, Any] = {"trust_remote_code": False, "local_files_only": local}
        config = AutoConfig.from_pretrained(where, **common)
        tokenizer = load_tokenizer(where, **common)
    except Exception as error:  # the loaders raise every kind; one line for the user
        raise LoratomyError(
            f"cannot read config and tokenizer of the base {where}: {load_error(error)}"
        ) from error
    rendering = Rendering(template=given_template(template or CHAT))
    return Renderer(tokenizer, rendering), position_limit(config)
