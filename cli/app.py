"""The command line: `loratomy` and its verbs."""

import functools
import io
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import typer
from safetensors import SafetensorError
from typer.core import TyperGroup

from ..core import processes
from ..core.console import err, say
from ..core.errors import LoratomyError
from ..core.files.atomic import full_disk, is_full
from ..core.stopping import Stopped, listen
from ..core.text import one_line
from . import (
    across,
    aftermath,
    analyses,
    attacks,
    bench,
    compare,
    data,
    demo,
    evaluate,
    extract,
    methods,
    open,
    operate,
    poison,
    probe,
    report,
    scorers,
    verify,
)


def _settings() -> None:
    """Set before torch is imported; a user's own settings win."""
    # Threads that spin long while they wait make small models 10x slower on shared cores, threads
    # that never spin 1.5x slower on idle ones.
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DATASETS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    if processes.count() > 1:  # each process would say that no parameter went unused
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    if not sys.warnoptions:
        warnings.filterwarnings("ignore", category=FutureWarning)
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", message=".*Converting a tensor with requires_grad.*")
        warnings.showwarning = _show_warning


def _show_warning(message: Any, category: Any, *_: Any) -> None:
    if issubclass(category, UserWarning):
        say(f"warning: {message}")


def _said(error: Exception) -> str:
    """What to say of an error of the system or of torch; empty where nobody foresaw it."""
    if is_full(error):
        return full_disk(error)
    if isinstance(error, OSError):
        what = f": {error.filename}" if error.filename else ""
        return f"{error.strerror or error}{what}; what was finished before is whole"
    if type(error).__name__ == "OutOfMemoryError":  # torch's, which is not imported here
        return (
            f"out of memory: {str(error).splitlines()[0]}; take fewer or shorter prompts, smaller "
            "batches (--help, loratomy analyses) or --dtype"
        )
    return ""


def _guarded(command: Callable[..., None]) -> Callable[..., None]:
    """The command with errors that a person can act on as one line and exit code 2."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            return command(*args, **kwargs)
        except LoratomyError as error:
            line, code = str(error), 2
        except KeyboardInterrupt:
            line, code = "stopped; run the same command again to continue", 130
        except Stopped as error:
            line = "terminated" if error.code == 143 else "stopped by SIGUSR1"
            line, code = f"{line}; run the same command again to continue", error.code
        except (OSError, RuntimeError, SafetensorError) as error:
            line, code = _said(error), 2
            if not line:
                raise
        err.print("[bold red]error:[/] ", end="")
        say(" ".join(line.split()))
        raise typer.Exit(code if processes.first() else 0)  # a launcher ends all where one fails

    return run


_UsageError: Any = typer.BadParameter.__mro__[1]
"""click's, wherever this version of typer has it."""


class _Verbs(TyperGroup):
    """The verbs; what is wrong with their options is said like every other text from outside."""

    def make_context(self, *args: Any, **given: Any) -> Any:
        """Its own options parsed."""
        with _visible():
            return super().make_context(*args, **given)

    def invoke(self, ctx: Any) -> Any:
        """The verb with its options parsed, and run."""
        with _visible():
            return super().invoke(ctx)


@contextmanager
def _visible() -> Iterator[None]:
    try:
        yield
    except _UsageError as error:
        raise _UsageError(one_line(error.format_message()), error.ctx) from error


app = typer.Typer(
    name="loratomy",
    cls=_Verbs,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    help=(
        "Measure, locate and remove backdoors in LoRA adapters. Make a run from your own adapter "
        "(open) or poison one for study (poison), measure it (evaluate), locate the backdoor "
        "(probe), cut it out (operate), and show the evidence (compare, report). Begin with: "
        "loratomy demo"
    ),
    epilog=(
        "Exit codes: 0 success; 1 data lint found an error; 2 an error, explained in the message; "
        "75 stopped by SIGUSR1, 130 by Ctrl-C, 143 by SIGTERM: run the same command again to "
        "continue."
    ),
)
for _module in (
    demo, poison, extract, open, evaluate, probe, operate, compare, aftermath, bench, report,
    across, verify, analyses, methods, attacks, scorers,
):  # fmt: skip
    app.command(name=_module.__name__.rsplit(".", 1)[-1])(_guarded(_module.command))
app.add_typer(data.app(_guarded), name="data")


def main() -> None:
    """Run the command line."""
    _settings()
    listen()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name that is not UTF-8 is shown all the same
            stream.reconfigure(errors="backslashreplace")
    app()
