"""The method and options of an operation, in whatever way they were given."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import LoratomyError
from ..core.records.patching import Where

if TYPE_CHECKING:
    from ..study import Study

RESERVED = ("base", "clean", "poisoned")
"""Names that no operation may have."""
PLAN = "plan"
"""The method that a file of entries is for."""
FOLLOWS = "repair"
"""The method that only makes sense after another."""
FOLLOWED = ("guided", "guided-unknown")
"""The entries that it follows unless --after names others."""


def chosen(
    method: str, options: dict[str, Any], budget: str, plan: str, *, study: "Study"
) -> tuple[str, dict[str, Any]]:
    """The method and its options, from whatever way they were given.

    Options of a group within a method's come as ``group.option``.
    """
    from ..unlearning import METHODS
    from ..unlearning.budget import Budget, parts_of
    from ..unlearning.plan import read_plan

    if plan:
        if method not in ("", PLAN):
            raise LoratomyError(f"--plan {plan} with the method {method}: give one of the two")
        if options:
            raise LoratomyError(f"--plan {plan} with --set {next(iter(options))}: edit the plan")
        method, options = PLAN, ranked(study, plan) or read_plan(Path(plan)).model_dump()
    elif method == PLAN:
        raise LoratomyError("plan takes its entries from a file: --plan FILE.toml, see --help")
    method, options = method or "guided", grouped(options)
    if budget:
        found = METHODS[method]
        if "budget" not in found.config.model_fields:
            others = [n for n, m in METHODS.items() if "budget" in m.config.model_fields]
            raise LoratomyError(
                f"--budget {budget}: {method} has no budget; these have: {', '.join(others)}"
            )
        if clash := [k for k in ("budget", *found.settled_by) if options.get(k) is not None]:
            raise LoratomyError(
                f"--budget {budget} with --set {clash[0]}={options[clash[0]]}: give one of the two"
            )
        try:
            options = {**options, "budget": Budget.model_validate(parts_of(budget))}
        except ValueError as error:
            raise LoratomyError(f"--budget {error}") from error
    return method, options


def grouped(options: dict[str, Any]) -> dict[str, Any]:
    """Options with ``group.option`` as a mapping under ``group``.

    Raises:
        LoratomyError: a group is given whole and in parts.
    """
    whole = {key: value for key, value in options.items() if "." not in key}
    parts: dict[str, Any] = {}
    for key in (key for key in options if key not in whole):
        group, _, option = key.partition(".")
        if group in whole:
            raise LoratomyError(f"--set {key} beside --set {group}: give one of the two")
        parts.setdefault(group, {})[option] = options[key]
    return whole | parts


def ranked(study: "Study", plan: str) -> dict[str, Any]:
    """The plan that ``where:N`` means; empty where it is a file.

    Raises:
        LoratomyError: the study has no ranking.
    """
    found = re.fullmatch(r"where:([1-9][0-9]{0,5})", plan)
    if found is None:
        return {}
    if not study.run.has("analysis/where"):
        raise LoratomyError(
            f"--plan {plan}: {study.run.root} has no ranking yet; make it with loratomy probe "
            f"{study.run.root} --only where"
        )
    return study.run.shelf("analysis/where").get(Where, "where").plan(int(found[1]))


def plan_name(plan: str, after: str) -> str:
    """What the result of a plan is called: as its file; not as a method or adapter."""
    from ..unlearning import METHODS

    name = Path(plan).stem.replace(":", "-")
    if name in RESERVED or (name in METHODS and name != PLAN):
        name = f"plan-{name}"
    return f"{after}-{name}" if after else name
