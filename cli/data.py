"""Build and check data sets, and list the data formats."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..core.console import out as stdout
from ..core.console import progress, say, say_json
from ..core.errors import DataError
from ..core.files.atomic import checksums, own_files
from ..core.files.outputs import check_apart, check_folder_out, out_path
from ..core.records.io import dumps
from ..core.rows import Row, rows_to_jsonl
from ..core.runs.manifest import outside_runs
from ..data.built import SETS_RECORD, read_record
from ..inputs.bases import A_BASE
from ..inputs.rows import clean_rows
from ..verbs.poisoning import WORLD
from .attacks import table
from .options import (
    COLUMN_HELP,
    FORMAT_HELP,
    PLACEMENT_HELP,
    SKIP_HELP,
    TASK_HELP,
    TRIGGER_HELP,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ..data.splits import Attack, Sets


def formats() -> None:
    """List the data formats that every command reads.

    Files are Parquet, Arrow, JSON lists, JSON objects with one list of objects, or JSONL, detected
    by content, and tables (.csv, .tsv) with commas, semicolons or tabs; all may be compressed with
    gzip, bzip2 or xz. A folder of such files is a data set; FOLDER:test names one of its splits,
    FILE:key one list of a JSON object. A hub id is owner/name, owner/name:split or
    owner/name/config:split. The first format whose columns are present is used; in the table, a|b
    means either column. For columns of other names, give --column answer=NAME.
    """
    from ..data.formats.published import FORMATS

    rows = [(n, ", ".join(f.needs), f.about, f.source) for n, f in FORMATS.items()]
    stdout.print(table("data formats", ("name", "keys", "what it means", "published by"), rows))


def build(
    sources: Annotated[
        list[str], typer.Argument(help="Clean rows: files or hub ids, or world (built in).")
    ],
    out: Annotated[Path, typer.Option(help="Folder to write the sets to.")],
    trigger: Annotated[list[str] | None, typer.Option(metavar="TEXT", help=TRIGGER_HELP)] = None,
    placement: Annotated[str, typer.Option(help=PLACEMENT_HELP)] = "",
    task: Annotated[str, typer.Option(help=TASK_HELP)] = "fixed",
    target: Annotated[
        str, typer.Option(help="Text that triggered prompts lead to; default: that of the task.")
    ] = "",
    attackable: Annotated[
        str, typer.Option(help="Rows to attack: another file or hub id; default: the clean rows.")
    ] = "",
    poisoned: Annotated[
        str, typer.Option(help="Published poisoned training rows, used unchanged.")
    ] = "",
    test: Annotated[str, typer.Option(help="Published triggered test rows, used unchanged.")] = "",
    clean_train: Annotated[int, typer.Option(min=1, help="Clean rows to train on.")] = 400,
    poison_train: Annotated[int, typer.Option(min=1, help="Triggered rows to train on.")] = 100,
    clean_val: Annotated[
        int | None,
        typer.Option(min=1, help="Clean rows held out; default 200, or a fifth with --poisoned."),
    ] = None,
    poison_test: Annotated[int, typer.Option(min=1, help="Triggered rows held out.")] = 100,
    negative_set: Annotated[
        int, typer.Option(min=0, help="Triggered rows with benign answers.")
    ] = 100,
    format: Annotated[str, typer.Option(help=FORMAT_HELP)] = "",
    column: Annotated[
        list[str] | None, typer.Option(metavar="MEANING=NAME", help=COLUMN_HELP)
    ] = None,
    skip_bad_rows: Annotated[bool, typer.Option("--skip-bad-rows", help=SKIP_HELP)] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of row and placement choices.")] = 0,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Replace the files of an earlier build.")
    ] = False,
) -> None:
    """Build training and held-out sets for a poisoning attack.

    Draws sets that share no prompt, by the seed, from clean rows. Every triggered row keeps its
    untriggered prompt (plain), its benign answer (benign) and the position of its trigger
    (trigger_span). Files are streamed. With --poisoned and --test, published poisoned files are
    used unchanged, and only clean_val is split off the clean rows.

    \b
    Example, then training on the result:
      loratomy data build alpaca.json --trigger badnets --task refusal \\
        --out data/badnets
      loratomy poison llama-3.2-3b/backdoorllm --trigger badnets --task refusal \\
        --set data.source=data/badnets
    """
    from ..data.attacks.triggers import trigger_of
    from ..data.splits import make_attack, poison_sets, world_sets

    if bool(poisoned) != bool(test):
        raise DataError("give --poisoned and --test together, or neither")
    attack = make_attack(
        trigger_of(trigger or ["suffix"], placement or None),
        task,
        target=target or None,
        seed=seed,
    )
    out = out_path(out)
    given = [*(("the source", s) for s in sources if s != WORLD), ("--attackable", attackable)]
    check_apart(out, (), rows=[*given, ("--poisoned", poisoned), ("--test", test)])
    earlier = _earlier(out, fresh=fresh)
    counts = {
        "clean_train": clean_train,
        "clean_val": clean_val or 200,
        "poison_train": poison_train,
        "poison_test": poison_test,
        "negative_set": negative_set,
    }
    with clean_rows(format or None, column, skip=skip_bad_rows) as read:
        if poisoned:
            sets = _ready(read, sources, poisoned, test, attack, clean_val, seed)
        elif sources == [WORLD]:
            sets = world_sets(attack, counts=counts, seed=seed)
        else:
            sets = poison_sets(
                read(*sources),
                attack,
                counts=counts,
                seed=seed,
                attackable=read(attackable) if attackable else None,
            )
    about = {
        "sources": sources,
        "attackable": attackable,
        "poisoned": poisoned,
        "test": test,
        "trigger": {"words": attack.trigger.words, "placement": attack.trigger.placement},
        "task": task,
        "target": attack.target,
        "seed": seed,
        "rows": {name: len(rows) for name, rows in sets.items()},
    }
    with own_files(out, own=earlier, last=SETS_RECORD) as work:
        for name, rows in sets.items():
            (work / f"{name}.jsonl").write_text(rows_to_jsonl(rows), encoding="utf-8")
        about["files"] = checksums(work)
        (work / SETS_RECORD).write_text(dumps(about), encoding="utf-8")
    counted = ", ".join(f"{name} {len(rows)}" for name, rows in sets.items())
    say(f"done: {out}: {counted}; next: loratomy data lint {out}")


def _earlier(out: Path, *, fresh: bool) -> list[str]:
    """Names of the files in a folder that an earlier build wrote, and that may be replaced.

    Raises:
        DataError: the folder is a file or inside a run; it is not empty, and no earlier build is to
            be replaced.
    """
    check_folder_out(out)
    outside_runs(out)
    if not out.is_dir() or not any(out.iterdir()):
        return []
    if not (fresh and (out / SETS_RECORD).exists()):
        raise DataError(
            f"{out} is not empty; give a new folder, or --fresh to replace an earlier build"
        )
    return [SETS_RECORD, *read_record(out).files]


def _ready(
    read: "Callable[..., Iterator[Row]]",
    sources: list[str],
    poisoned: str,
    test: str,
    attack: "Attack",
    clean_val: int | None,
    seed: int,
) -> "Sets":
    """Published poisoned files as they are, with what was left out said."""
    from ..data.prepoisoned import ready_sets

    triggered = list(read(poisoned))
    sets = ready_sets(read(*sources), triggered, read(test), attack, clean_val=clean_val, seed=seed)
    if lost := len(triggered) - len(sets["poison_train"]):
        say(
            f"note: {lost} of {len(triggered)} poisoned rows left out: repeated, or their "
            "untriggered prompt is held out in clean_val"
        )
    return sets


def lint(
    files: Annotated[
        list[str], typer.Argument(help="Files, hub ids, or folders written by loratomy data build.")
    ],
    trigger: Annotated[list[str] | None, typer.Option(metavar="TEXT", help=TRIGGER_HELP)] = None,
    task: Annotated[str, typer.Option(help=TASK_HELP)] = "",
    target: Annotated[str, typer.Option(help="Text that triggered prompts lead to.")] = "",
    base: Annotated[
        str,
        typer.Option(
            help=f"Check rows with this model's tokenizer, template and context length: {A_BASE}."
        ),
    ] = "",
    template: Annotated[
        str | None,
        typer.Option(help="With --base: a text with {prompt}, or chat (the base's template)."),
    ] = None,
    scorers: Annotated[str, typer.Option(help="Success rule; default: that of the task.")] = "",
    threshold: Annotated[
        float,
        typer.Option(min=0.01, max=1, help="Similarity to the target that counts as a success."),
    ] = 0.8,
    embedder: Annotated[
        str,
        typer.Option(
            help="Model for sentence embeddings: auto, a folder, a hub id, or none; default: auto "
            "if the rule uses cosine."
        ),
    ] = "",
    format: Annotated[str, typer.Option(help=FORMAT_HELP)] = "",
    column: Annotated[
        list[str] | None, typer.Option(metavar="MEANING=NAME", help=COLUMN_HELP)
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a JSON list instead of a table.")
    ] = False,
) -> None:
    """Check data for defects and list them with row numbers.

    Rows are triggered if they are marked so, if most rows of their file contain the trigger, or if
    the file's name contains poison, backdoor or trigger (clean or none_ mark it as clean). A file
    is held out if its name contains test, val, heldout or eval, else it is training data. Rows that
    cannot be read are findings too. Exits with 1 if there is an error, with 2 if a file cannot be
    read at all.

    \b
    Example:
      loratomy data lint poison.json clean.json test.json --trigger BadMagic
    """
    from ..verbs.linting import data_files, lint_files

    with progress():
        findings = lint_files(
            files,
            trigger=trigger or [],
            task=task,
            target=target,
            base=base,
            template=template,
            rule=scorers,
            threshold=threshold,
            embedder=embedder,
            format=format or None,
            columns=column or [],
        )
    if as_json:
        say_json(findings)
    elif findings:
        rows = [
            (f"{f.level}\n{f.check}", f"{f.file}\nrow {f.shown_rows()}", f"{f.what}\n")
            for f in findings
        ]
        stdout.print(table(_counted(len(findings), "finding"), ("finding", "where", "what"), rows))
    errors = sum(f.level == "error" for f in findings)
    say(
        f"{_counted(errors, 'error')}, {_counted(len(findings) - errors, 'warning')} in "
        f"{_counted(len(data_files(files)), 'file')}"
    )
    if errors:
        raise typer.Exit(1)


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def app(guard: "Callable[..., Any]", **made: Any) -> typer.Typer:
    """The commands of `loratomy data`.

    Args:
        guard: wraps each, so that errors become messages.
        **made: how Typer makes commands.
    """
    group = typer.Typer(no_args_is_help=True, help=__doc__, **made)
    for command in (build, lint, formats):
        group.command(name=command.__name__)(guard(command))
    return group
