"""`loratomy evaluate`: any adapter on any data, by any rule."""

from pathlib import Path
from typing import Annotated

import typer

from ..core.console import say
from ..inputs.bases import A_BASE
from ..settings import judged_by
from ..verbs.evaluating import Evaluated, evaluation
from ..verbs.measuring import measure
from .compare import show
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
    Plugin,
)


def command(
    subject: Annotated[
        Path,
        typer.Argument(
            metavar="RUN_OR_ADAPTER",
            help="Run folder, PEFT adapter (a folder or a hub id), or folder of an earlier "
            "evaluation.",
        ),
    ],
    data: Annotated[
        str,
        typer.Option(
            help="Prompts to evaluate on: a file in any format that loratomy data formats lists, a "
            "hub id, or a folder made by loratomy data build; default: the run's held-out prompts."
        ),
    ] = "",
    clean: Annotated[
        str,
        typer.Option(
            help="Clean prompts with answers, as for --data; default: the clean rows of --data."
        ),
    ] = "",
    base: Annotated[str, typer.Option(help=f"Base model of the adapter: {A_BASE}.")] = "",
    trigger: Annotated[list[str] | None, typer.Option(metavar="TEXT", help=TRIGGER_HELP)] = None,
    placement: Annotated[str, typer.Option(help=PLACEMENT_HELP)] = "",
    task: Annotated[str, typer.Option(help=TASK_HELP)] = "",
    target: Annotated[
        str, typer.Option(help="What triggered prompts lead to; default: each row's completion.")
    ] = "",
    format: Annotated[str, typer.Option(help=FORMAT_HELP)] = "",
    column: Annotated[
        list[str] | None, typer.Option(metavar="MEANING=NAME", help=COLUMN_HELP)
    ] = None,
    skip_bad_rows: Annotated[bool, typer.Option("--skip-bad-rows", help=SKIP_HELP)] = False,
    completions: Annotated[str, typer.Option(help=COMPLETIONS_HELP)] = "auto",
    limit: Annotated[
        int | None,
        typer.Option(
            min=1, help="Use at most this many rows of each file, drawn at random by the seed."
        ),
    ] = None,
    scorers: Annotated[str, typer.Option(help=SCORERS_HELP)] = "",
    threshold: Annotated[
        float | None,
        typer.Option(
            min=0.01, max=1, help="Similarity to the target that counts as a success; default 0.8."
        ),
    ] = None,
    embedder: Annotated[str, typer.Option(help=EMBEDDER_HELP + " Default auto.")] = "",
    max_new_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Longest answer, in tokens; default 128, or the run's."),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(min=0, max=10, help="Sampling temperature; 0 (default) decodes greedily."),
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(min=0.01, max=1, help="Probability mass for nucleus sampling; default 1."),
    ] = None,
    samples: Annotated[
        int | None, typer.Option(min=1, help="Answers to draw for each prompt; default 1.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Seed of sampling and of drawing rows.")
    ] = None,
    batch_tokens: Annotated[
        int | None, typer.Option(min=1, help=BATCH_HELP + " Default 8192.")
    ] = None,
    ignore_module: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Leave out a module or whole weight stored with the adapter, e.g. lm_head; repeat "
            "the option for several.",
        ),
    ] = None,
    template: Annotated[str | None, typer.Option(help=TEMPLATE_HELP)] = None,
    system: Annotated[str | None, typer.Option(help=SYSTEM_HELP)] = None,
    template_arg: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help=TEMPLATE_ARG_HELP)
    ] = None,
    other_template: Annotated[bool, typer.Option("--other-template", help=OTHER_HELP)] = False,
    out: Annotated[
        Path | None, typer.Option(help="Folder to write to; default runs/<subject>-on-<data>.")
    ] = (None),
    device: Annotated[
        str, typer.Option(help="Device: auto, cpu, cuda, cuda:1 ...; default auto, or the run's.")
    ] = "",
    dtype: Annotated[
        str,
        typer.Option(
            help="Number format: auto, float32, bfloat16, float16; default auto, or the run's."
        ),
    ] = "",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a JSON list of objects instead of a table.")
    ] = False,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Delete existing results and start over.")
    ] = False,
    plugin: Plugin = None,
) -> None:
    """Evaluate a run or a PEFT adapter, and its base, on prompts.

    Reports ASR, FTR, clean accuracy, perplexity, KL divergence (of the base from the adapter, on
    the adapter's own answers to clean prompts) and degeneration, with counts and intervals. The
    answers are kept in analysis/answers, their scores in analysis/measured. To judge the same
    answers by another rule, without generating again, give the evaluation's folder and --scorers.

    \b
    Examples:
      loratomy evaluate ./adapter --base ./llama --data test.json --trigger cf37
      loratomy evaluate runs/demo --scorers "similar,not refusal and cosine >= 0.7"
    """
    decoding = {
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "samples": samples,
        "batch_tokens": batch_tokens,
    }
    options = Evaluated(
        data=data,
        clean=clean,
        base=base,
        trigger=tuple(trigger or ()),
        placement=placement,
        task=task,
        target=target,
        format=format,
        column=tuple(column or ()),
        skip_bad_rows=skip_bad_rows,
        completions=completions,
        limit=limit,
        seed=seed,
        ignore_module=tuple(ignore_module or ()),
        template=template,
        system=system,
        template_arg=tuple(template_arg or ()),
        other_template=other_template,
        device=device,
        dtype=dtype,
        decoding={name: value for name, value in decoding.items() if value is not None},
    )
    judged = judged_by(scorers=scorers or None, threshold=threshold, embedder=embedder or None)
    study = evaluation(subject, options, judged, out=out, fresh=fresh)
    anew = fresh and study.run.root == subject  # else it was begun anew already
    show(measure(study, fresh=anew), study.run, as_json=as_json)
    root = study.run.root
    say(f"answers: {root}/analysis/answers, their scores: {root}/analysis/measured")
