"""`loratomy methods`: what can be done to an adapter."""

from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin

import typer

from ..core.console import out, say_json
from .attacks import table
from .options import Plugin

if TYPE_CHECKING:
    from ..core.config import Config
    from ..unlearning import Method


def command(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="Explain this method and its options; default: list all."
        ),
    ] = "",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a JSON list of objects instead of a table.")
    ] = False,
    plugin: Plugin = None,
) -> None:
    """List the methods: what each does and needs, and its source.

    Cuts edit the weights, trained methods fine-tune, baselines quantise the model or sample its
    answers, and controls are what a method has to beat.

    Example: loratomy methods guided
    """
    from ..unlearning import METHODS
    from ..unlearning.method import KINDS

    every = sorted(METHODS.items(), key=lambda item: KINDS.index(item[1].kind))
    chosen = [(name, METHODS[name])] if name else every
    if as_json:
        say_json([described(n, m) for n, m in chosen])
    elif name:
        out.print(f"[bold]{name}[/] ({METHODS[name].kind}): ", end="", highlight=False)
        out.print(_about(METHODS[name]), markup=False, highlight=False)
        rows = [
            (option["name"], _default(option), _meaning(option))
            for option in described(name, METHODS[name])["options"]
        ]
        out.print(table("options (--set)", ("name", "default", "what it is"), rows))
    else:
        rows = [(n, m.kind, _needs(m), f"{m.about}\nsource: {m.source}\n") for n, m in chosen]
        out.print(table("methods", ("name", "kind", "needs", "what it does"), rows))
        out.print("options: loratomy methods NAME; to run one: loratomy operate RUN NAME")


def described(name: str, method: "Method") -> dict[str, Any]:
    """A method as JSON-able values."""
    return {
        "name": name,
        "kind": method.kind,
        "about": method.about,
        "needs": list(method.needs),
        "settled_by": list(method.settled_by),
        "source": method.source,
        "options": _options(method.config),
    }


def _options(config: "type[Config]", above: str = "") -> list[dict[str, Any]]:
    """Options by the name that --set takes; a group of options within is listed one by one."""
    from ..core.config import Config

    found = []
    for key, field in config.model_fields.items():
        default = None if field.is_required() else field.get_default()
        if isinstance(default, Config):
            found += _options(type(default), f"{above}{key}.")
            continue
        found.append(
            {
                "name": above + key,
                "required": field.is_required(),
                "default": default,
                "choices": list(get_args(field.annotation))
                if get_origin(field.annotation) is Literal
                else [],
                "about": " ".join((field.description or "").split()),
            }
        )
    return found


def _meaning(option: dict[str, Any]) -> str:
    choices = ", ".join(map(str, option["choices"]))
    return f"{choices}: {option['about']}" if choices else option["about"]


def _default(option: dict[str, Any]) -> str:
    return "required" if option["required"] else str(option["default"])


def _needs(method: "Method") -> str:
    from ..unlearning.method import CLEAN_ADAPTER

    needs = ", ".join(method.needs) or "the adapter alone"
    if method.settled_by:
        data = [need for need in method.still if need != CLEAN_ADAPTER]
        needs += f"; {', '.join(data) or 'no data'} with {' or '.join(method.settled_by)}"
    return needs


def _about(method: "Method") -> str:
    return f"{method.about}\nneeds: {_needs(method)}\nsource: {method.source}\n"
