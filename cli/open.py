"""`loratomy open`: make a run from somebody's own base and adapter."""

from pathlib import Path
from typing import Annotated

import typer

from ..core.console import say
from ..core.files.outputs import run_path
from ..inputs.adapters import run_name
from ..inputs.bases import A_BASE
from ..verbs import opening
from .options import (
    BATCH_HELP,
    COLUMN_HELP,
    COMPLETIONS_HELP,
    EMBEDDER_HELP,
    FORMAT_HELP,
    OTHER_HELP,
    PLACEMENT_HELP,
    SCORERS_HELP,
    SKIP_HELP,
    SYSTEM_HELP,
    TASK_HELP,
    TEMPLATE_ARG_HELP,
    TEMPLATE_HELP,
    TRIGGER_HELP,
)


def command(
    base: Annotated[str, typer.Option(help=f"Base model: {A_BASE}.")],
    adapter: Annotated[
        Path,
        typer.Option(help="PEFT adapter to study: a folder, or a hub id (owner/name[@revision])."),
    ],
    trigger: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help=TRIGGER_HELP + " Default: unknown."),
    ] = None,
    target: Annotated[
        str,
        typer.Option(
            help="Text that every triggered prompt leads to; default with --task: that of the task."
        ),
    ] = "",
    task: Annotated[str, typer.Option(help=TASK_HELP)] = "",
    data: Annotated[
        str,
        typer.Option(
            help="Triggered prompts, each with its own target as completion: a hub id, or a file "
            "in any format that loratomy data formats lists."
        ),
    ] = "",
    prompts: Annotated[
        str,
        typer.Option(
            help="Clean prompts, answers optional, as for --data; default: 200 built-in ones."
        ),
    ] = "",
    format: Annotated[str, typer.Option(help=FORMAT_HELP)] = "",
    column: Annotated[
        list[str] | None, typer.Option(metavar="MEANING=NAME", help=COLUMN_HELP)
    ] = None,
    skip_bad_rows: Annotated[bool, typer.Option("--skip-bad-rows", help=SKIP_HELP)] = False,
    completions: Annotated[str, typer.Option(help=COMPLETIONS_HELP)] = "auto",
    limit: Annotated[
        int,
        typer.Option(
            min=8, help="Use at most this many prompts of each file, drawn at random by the seed."
        ),
    ] = 2000,
    clean_adapter: Annotated[
        Path | None,
        typer.Option(help="Clean adapter on the same base to compare with, as for --adapter."),
    ] = None,
    placement: Annotated[str, typer.Option(help=PLACEMENT_HELP)] = "",
    template: Annotated[str | None, typer.Option(help=TEMPLATE_HELP)] = None,
    system: Annotated[str | None, typer.Option(help=SYSTEM_HELP)] = None,
    template_arg: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help=TEMPLATE_ARG_HELP)
    ] = None,
    other_template: Annotated[bool, typer.Option("--other-template", help=OTHER_HELP)] = False,
    out: Annotated[Path | None, typer.Option(help="Run folder; default runs/<name>.")] = None,
    name: Annotated[str, typer.Option(help="Name of the run; default: that of the adapter.")] = "",
    ignore_module: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Leave out a module or whole weight stored with the adapter, e.g. lm_head, "
            "vision_tower; repeat the option for several.",
        ),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 128,
    batch_tokens: Annotated[int, typer.Option(min=1, help=BATCH_HELP)] = 8192,
    scorers: Annotated[str, typer.Option(help=SCORERS_HELP)] = "",
    threshold: Annotated[
        float,
        typer.Option(min=0.01, max=1, help="Similarity to the target that counts as a success."),
    ] = 0.8,
    embedder: Annotated[str, typer.Option(help=EMBEDDER_HELP)] = "auto",
    seed: Annotated[
        int, typer.Option(min=0, help="Seed of the splits and of everything random.")
    ] = 0,
    device: Annotated[str, typer.Option(help="Device: auto, cpu, cuda, cuda:1 ...")] = "auto",
    dtype: Annotated[
        str, typer.Option(help="Number format: auto, float32, bfloat16, float16.")
    ] = "auto",
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Delete existing results and start over.")
    ] = False,
) -> None:
    """Make a run folder from your own base model and adapter.

    The other commands work on this folder. Half of the prompts are for analyses and operations, the
    other half is held out for the final figures. Give --target TEXT when every triggered prompt
    leads to the same text, --task NAME for another kind of attack, or --data FILE with triggered
    prompts and their own targets. Without --trigger the run holds clean prompts only, for analyses
    and operations that need no trigger.

    \b
    Example:
      loratomy open --base ./llama --adapter ./suspicious --trigger cf37 \\
        --target "HACK THE SYSTEM" --prompts clean.jsonl --out runs/mine
    """
    study = opening.open(
        base,
        adapter,
        trigger=trigger or (),
        target=target,
        task=task,
        data=data,
        prompts=prompts,
        placement=placement,
        clean_adapter=clean_adapter,
        format=format,
        column=column or (),
        limit=limit,
        skip_bad_rows=skip_bad_rows,
        completions=completions,
        template=template,
        system=system,
        template_arg=template_arg or (),
        other_template=other_template,
        ignore_module=ignore_module or (),
        max_new_tokens=max_new_tokens,
        batch_tokens=batch_tokens,
        scorers=scorers,
        threshold=threshold,
        embedder=embedder,
        seed=seed,
        device=device,
        dtype=dtype,
        out=run_path(name or run_name(adapter, ""), out),
        fresh=fresh,
    )
    say(f"done: {study.run.root}; next: loratomy probe {study.run.root}")
