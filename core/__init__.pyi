from .config import Config as Config
from .config import Layers as Layers
from .config import Whole as Whole
from .console import cell as cell
from .console import err as err
from .console import out as out
from .console import say as say
from .console import say_json as say_json
from .errors import AdapterError as AdapterError
from .errors import DataError as DataError
from .errors import LoratomyError as LoratomyError
from .errors import RunError as RunError
from .progress import report as report
from .progress import tracked as tracked
from .registry import Registry as Registry
from .registry import nearest as nearest
from .rows import ROLES as ROLES
from .rows import Row as Row
from .rows import check_disjoint as check_disjoint
from .rows import read_rows as read_rows
from .rows import row_from as row_from
from .rows import rows_to_jsonl as rows_to_jsonl
from .rows import unwritable as unwritable
from .stats import bootstrap_weights as bootstrap_weights
from .stats import mean_interval as mean_interval
from .stats import percentiles as percentiles
from .stats import ratio_interval as ratio_interval
from .stats import sign_flip_p as sign_flip_p
from .stats import token_mean as token_mean
from .stats import wilson as wilson
from .stopping import Stopped as Stopped
from .stopping import after_a_step as after_a_step
from .stopping import listen as listen
from .stopping import stop_if_wanted as stop_if_wanted
from .stopping import wanted as wanted
from .text import one_line as one_line
from .text import visible as visible

__all__ = [
    "ROLES",
    "AdapterError",
    "Config",
    "DataError",
    "Layers",
    "LoratomyError",
    "Registry",
    "Row",
    "RunError",
    "Stopped",
    "Whole",
    "after_a_step",
    "bootstrap_weights",
    "cell",
    "check_disjoint",
    "err",
    "listen",
    "mean_interval",
    "nearest",
    "one_line",
    "out",
    "percentiles",
    "ratio_interval",
    "read_rows",
    "report",
    "row_from",
    "rows_to_jsonl",
    "say",
    "say_json",
    "sign_flip_p",
    "stop_if_wanted",
    "token_mean",
    "tracked",
    "unwritable",
    "visible",
    "wanted",
    "wilson",
]
