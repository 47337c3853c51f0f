from .linter import Defect as Defect
from .linter import LintedFile as LintedFile
from .linter import LintOptions as LintOptions
from .linter import lint as lint

__all__ = [
    "Defect",
    "LintOptions",
    "LintedFile",
    "lint",
]
