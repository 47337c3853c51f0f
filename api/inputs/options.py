"""Options as Python has them, in the form in which methods and analyses take them."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ..core.errors import LoratomyError

if TYPE_CHECKING:
    from ..results import Operated


def _is_list(value: Any) -> bool:
    return isinstance(value, Iterable) and not isinstance(value, str | Mapping)


def name_of(operation: "Operated | str | None") -> str:
    """The name of an operation that is given itself or by its name; empty: none is.

    Raises:
        LoratomyError: it is neither.
    """
    name = getattr(operation, "name", operation) or ""
    if not isinstance(name, str):
        raise LoratomyError(f"{operation!r} is no operation; give what operate returned or a name")
    return name


def listed(config: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options with lists as comma-separated text where that is what they take."""
    fields = getattr(config, "model_fields", {})
    return {
        name: ",".join(map(str, value))
        if name in fields and fields[name].annotation is str and _is_list(value)
        else value
        for name, value in options.items()
    }
