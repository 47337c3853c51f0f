"""Writes docs/api.md from the docstrings of `import loratomy`: ``python docs/build_api.py``."""

import inspect
import sys
from pathlib import Path

import loratomy as lt

PAGE = Path(__file__).with_name("api.md")
HEAD = """# The Python API

`import loratomy as lt`. Written by `python docs/build_api.py` from the docstrings; the options of
analyses and methods are listed by `lt.analyses()` and `lt.methods()`, and explained by
`loratomy analyses NAME` and `loratomy methods NAME`. How to write your own:
[extending.md](extending.md). A walk through all of it:
[quickstart.py](../examples/quickstart.py), [quickstart.ipynb](../examples/quickstart.ipynb).
"""
GROUPS = {
    "Studies": ("open", "load", "poison", "Study"),
    "What verbs give back": ("Record", "Results", "Operated"),
    "What there is": ("analyses", "methods", "attacks", "scorers"),
    "Your own": ("analysis", "method", "scorer", "record", "Config"),
    "Errors": ("LoratomyError",),
}


def page() -> str:
    """The whole page.

    Raises:
        ValueError: a public name that no group has.
    """
    if lost := set(lt.__all__) - {name for names in GROUPS.values() for name in names}:
        raise ValueError(f"in no group of docs/build_api.py: {', '.join(sorted(lost))}")
    parts = [HEAD]
    for title, names in GROUPS.items():
        parts.append(f"## {title}\n")
        parts += [_entry(f"lt.{name}", _thing(name), level=3) for name in names]
    return "\n".join(parts)


def _thing(name: str):
    if name == "analysis":  # the package of that name is the decorator too
        from loratomy.analysis.analyses import analysis

        return analysis
    return getattr(lt, name)


def _entry(name: str, thing, *, level: int) -> str:
    lines = [f"{'#' * level} `{name}`\n"]
    if not inspect.isclass(thing):
        lines.append(f"```python\n{_signature(name, thing)}\n```\n")
    lines.append(_prose(inspect.getdoc(thing) or ""))
    if inspect.isclass(thing):
        for key, member in vars(thing).items():
            if key.startswith("_") or not (inspect.isfunction(member) or _is_property(member)):
                continue
            shown = f"{thing.__name__}.{key}"
            if _is_property(member):
                lines.append(f"- `{shown}`: {_first(member)}\n")
            else:
                lines.append(_entry(shown, member, level=level + 1))
    return "\n".join(lines)


def _is_property(member) -> bool:
    return isinstance(member, property) or type(member).__name__ == "cached_property"


def _first(member) -> str:
    return " ".join((inspect.getdoc(member) or "").split("\n\n")[0].split())


def _signature(name: str, function) -> str:
    signature = inspect.signature(function)
    kept = [p.replace(annotation=p.empty) for n, p in signature.parameters.items() if n != "self"]
    parts = [str(p) for p in kept]
    if any(p.kind is p.KEYWORD_ONLY for p in kept):
        first = next(i for i, p in enumerate(kept) if p.kind is p.KEYWORD_ONLY)
        parts.insert(first, "*")
    line = f"{name}({', '.join(parts)})"
    if len(line) <= 100:
        return line
    return f"{name}(\n" + "".join(f"    {part},\n" for part in parts) + ")"


def _prose(text: str) -> str:
    """A Google-style docstring as Markdown."""
    out: list[str] = []
    for line in text.splitlines():
        heading = line.strip() in ("Args:", "Raises:", "Returns:") and not line.startswith(" ")
        if heading:
            out += ["", f"*{line.strip()}*", ""]
        elif line.startswith("    ") and not line.startswith("     "):
            name, found, about = line.strip().partition(": ")
            out.append(f"- `{name}`: {about}" if found else f"- {line.strip()}")
        elif line.startswith("     "):
            out.append(f"  {line.strip()}")
        else:
            out.append(line.replace("``", "`"))
    return "\n".join(out).replace("``", "`") + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE}", file=sys.stderr)
