"""The command line: `loratomy` and its verbs."""

import ast
import functools
import io
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
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


def _summary(name: str) -> str:
    """The first line of a command's docstring, or of its module's where it has commands below."""
    tree = ast.parse(Path(__file__).with_name(f"{name}.py").read_text(encoding="utf-8"))
    functions = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "command"]
    return (ast.get_docstring(functions[0] if functions else tree) or "").split("\n")[0]


_UsageError: Any = typer.BadParameter.__mro__[1]
"""click's, wherever this version of typer has it."""


_MADE: dict[str, Any] = {
    "add_completion": False,
    "pretty_exceptions_enable": False,
    "rich_markup_mode": None,
}
"""How Typer makes this program's commands."""
VERBS = (
    *("demo", "poison", "extract", "open", "evaluate", "probe", "operate", "compare", "aftermath"),
    *("bench", "report", "across", "verify", "analyses", "methods", "attacks", "scorers", "data"),
)
"""Names of the commands, each a module of this package with a function `command` or `app`."""


class _Verbs(TyperGroup):
    """The commands, each imported when it is run; messages about their options are made visible."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Their names, in the order of the walk."""
        return list(VERBS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of this name; None where there is none."""
        if cmd_name not in VERBS:
            return None
        try:
            module = import_module(f".{cmd_name}", __package__)
        except KeyboardInterrupt:
            say("error: interrupted; run the same command again")
            raise typer.Exit(130) from None
        if hasattr(module, "command"):
            made = typer.Typer(**_MADE)
            made.command(name=cmd_name)(_guarded(module.command))
        else:
            made = module.app(_guarded, **_MADE)
        return typer.main.get_command(made)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Each command with the first line of its docstring, read without importing it."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, _summary(name)) for name in VERBS])

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
        if type(error).__name__ == "NoArgsIsHelpError":  # a page of help, of our own text
            raise
        raise _UsageError(one_line(error.format_message()), error.ctx) from error


app = typer.Typer(
    name="loratomy",
    cls=_Verbs,
    no_args_is_help=True,
    **_MADE,
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


@app.callback()
def _verbs() -> None:
    """The commands are found by `_Verbs`."""


def main() -> None:
    """Run the command line."""
    _settings()
    listen()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name that is not UTF-8 is shown all the same
            stream.reconfigure(errors="backslashreplace")
    app()
