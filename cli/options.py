"""What options that several commands share say of themselves, and how they are read."""

from pathlib import Path
from typing import Annotated, Any

import typer

from ..core.errors import LoratomyError, RunError
from ..core.files.jsonfiles import json_or_text
from ..core.rendering.templates import TEMPLATES
from ..data.attacks.tasks import TASKS
from ..data.attacks.triggers import LITERAL, PLACEMENTS, TRIGGERS

TRIGGER_HELP = (
    f"The trigger: a text taken exactly as it is (several times for several), or one of "
    f"{', '.join(TRIGGERS)}; {LITERAL}NAME for a text that is such a name."
)
PLACEMENT_HELP = (
    f"Where it goes: {', '.join(PLACEMENTS)}; default: the trigger's own, suffix for a text."
)
TASK_HELP = "What the attack wants: " + "; ".join(f"{n}: {t.wants}" for n, t in TASKS.items())
SCORERS_HELP = (
    "Success rules, the deciding one first, e.g. 'seed,keywords,not refusal and cosine >= 0.7'; "
    "default: the task's own (loratomy attacks). Scorers: loratomy scorers."
)
EMBEDDER_HELP = "Sentence embeddings: auto, a folder, a hub id, or none (letters only)."
TEMPLATE_HELP = (
    "How prompts are rendered: chat (the base's chat template), a published form "
    f"({', '.join(TEMPLATES)}), a Jinja file, or a text with {{prompt}}; default: what the adapter "
    "finds likeliest."
)
SYSTEM_HELP = "System text of prompts that have none of their own."
TEMPLATE_ARG_HELP = "What the chat template is told, key=value, e.g. enable_thinking=false."
OTHER_HELP = "Allow another rendering than the one recorded beside the adapter."
BATCH_HELP = "Most positions of a batch: prompts x (longest prompt + new tokens)."
FORMAT_HELP = "Format, where it cannot be told (loratomy data formats)."
COLUMN_HELP = (
    "What a column of another name means, as MEANING=NAME (several times for several), e.g. "
    "answer=response; meanings: prompt, input, answer, system, history, target, messages, text."
)
SKIP_HELP = "Leave out rows that cannot be read; they are counted and the first ones shown."
COMPLETIONS_HELP = (
    "What completions of triggered rows are: targets (what the attack wants), references (benign "
    "answers, as in published test files), or auto: told by --task or --target, else asked for."
)

REPORT_HELP = (
    "Trackers that hear of training, comma-separated: wandb, trackio, tensorboard. Files go below "
    "tracking/ in the run folder; without a key W&B goes on offline."
)


def _load(paths: list[Path] | None) -> list[Path] | None:
    """Run the files of --plugin, and what packages register."""
    from ..inputs.plugins import load_file, load_installed

    try:
        load_installed()
        for path in paths or []:
            load_file(path)
    except LoratomyError as error:
        raise typer.BadParameter(str(error).removeprefix("--plugin ")) from error
    return paths


Plugin = Annotated[
    list[Path] | None,
    typer.Option(
        "--plugin",
        metavar="FILE",
        callback=_load,
        is_eager=True,
        help="Python file of yours that registers analyses, methods or scorers; it is run as it is "
        "(docs/extending.md).",
    ),
]


def parse_pairs(pairs: list[str]) -> dict[str, Any]:
    """``key=value`` options as a mapping; values are JSON where they parse, else text."""
    values: dict[str, Any] = {}
    for pair in pairs:
        key, found, value = pair.partition("=")
        if not found or not key:
            raise RunError(f"--set {pair[:60]!r}: write key=value, e.g. budget=0.01")
        values[key] = json_or_text(value, f"--set {key[:40]}")
    return values
