"""Help texts of options that several commands share, and how these options are read."""

from pathlib import Path
from typing import Annotated, Any

import typer

from ..core.errors import LoratomyError, RunError
from ..core.files.jsonfiles import json_or_text
from ..core.rendering.templates import TEMPLATES
from ..data.attacks.tasks import TASKS
from ..data.attacks.triggers import LITERAL, PLACEMENTS, TRIGGERS

TRIGGER_HELP = (
    f"The trigger: its exact text (repeat the option for several texts), or a published trigger by "
    f"name: {', '.join(TRIGGERS)}. Write {LITERAL}NAME where the text is itself such a name."
)
PLACEMENT_HELP = (
    f"Where to put the trigger: {', '.join(PLACEMENTS)}; default: that of the published trigger, "
    "suffix for a text."
)
TASK_HELP = (
    "What a triggered prompt leads to: "
    + ", ".join(f"{n} ({t.wants})" for n, t in TASKS.items())
    + "."
)
SCORERS_HELP = (
    "Success rules, comma-separated; the first one decides, e.g. 'seed,keywords,not refusal and "
    "cosine >= 0.7'; default: that of the task (see loratomy attacks). loratomy scorers lists the "
    "scorers."
)
EMBEDDER_HELP = (
    "Model for sentence embeddings: auto, a folder, a hub id, or none (compare letters only)."
)
TEMPLATE_HELP = (
    "How to render prompts: chat (the base's chat template), a published form "
    f"({', '.join(TEMPLATES)}), a Jinja file, or a text with {{prompt}}; default: the form under "
    "which the adapter finds the known answers most likely."
)
SYSTEM_HELP = "System text for prompts that have none of their own."
TEMPLATE_ARG_HELP = "Argument of the chat template, e.g. enable_thinking=false."
OTHER_HELP = "Allow a rendering other than the one recorded beside the adapter."
BATCH_HELP = "Largest batch in token positions: prompts x (longest prompt + new tokens)."
FORMAT_HELP = "Data format, where it is not detected (loratomy data formats lists them)."
COLUMN_HELP = (
    "Say what a column means, e.g. answer=response (repeat the option for several columns); "
    "meanings: prompt, input, answer, system, history, target, messages, text."
)
SKIP_HELP = "Leave out rows that cannot be read; count them and show the first ones."
COMPLETIONS_HELP = (
    "What the completions of triggered rows are: targets (what the attack wants), references "
    "(benign answers, as in published test files), or auto: decide by --task or --target, and stop "
    "with an error where they do not decide."
)

REPORT_HELP = (
    "Trackers to log training to, comma-separated: wandb, trackio, tensorboard. Their files go to "
    "tracking/ in the run folder; without an API key wandb logs offline."
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
        help="Load your own analyses, methods or scorers from a Python file. The file is executed: "
        "give only files that you trust. See docs/extending.md.",
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
