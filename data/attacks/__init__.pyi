from .tasks import TASKS as TASKS
from .tasks import Task as Task
from .tasks import benign_answer as benign_answer
from .tasks import shows_target as shows_target
from .triggers import LITERAL as LITERAL
from .triggers import PLACEMENTS as PLACEMENTS
from .triggers import TRIGGERS as TRIGGERS
from .triggers import Trigger as Trigger
from .triggers import as_triggered as as_triggered
from .triggers import check_places as check_places
from .triggers import check_trigger as check_trigger
from .triggers import elsewhere as elsewhere
from .triggers import find_words as find_words
from .triggers import no_room as no_room
from .triggers import place as place
from .triggers import shown as shown
from .triggers import trigger_of as trigger_of
from .triggers import untriggered as untriggered
from .triggers import without_trigger as without_trigger

__all__ = [
    "LITERAL",
    "PLACEMENTS",
    "TASKS",
    "TRIGGERS",
    "Task",
    "Trigger",
    "as_triggered",
    "benign_answer",
    "check_places",
    "check_trigger",
    "elsewhere",
    "find_words",
    "no_room",
    "place",
    "shown",
    "shows_target",
    "trigger_of",
    "untriggered",
    "without_trigger",
]
