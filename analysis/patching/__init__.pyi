from .metrics import METRICS as METRICS
from .metrics import Metric as Metric
from .metrics import MetricTarget as MetricTarget
from .metrics import metric_target as metric_target
from .pairs import Columns as Columns
from .pairs import Pair as Pair
from .pairs import check_map as check_map
from .pairs import differing as differing
from .pairs import make_columns as make_columns
from .pairs import make_pairs as make_pairs
from .pairs import plain_pairs as plain_pairs
from .pairs import trigger_positions as trigger_positions
from .sites import Place as Place
from .sites import Side as Side
from .sites import block_ports as block_ports
from .sites import features as features
from .sites import kept_ports as kept_ports
from .sites import places as places
from .sites import port_width as port_width
from .sites import value_and_current as value_and_current

__all__ = [
    "METRICS",
    "Columns",
    "Metric",
    "MetricTarget",
    "Pair",
    "Place",
    "Side",
    "block_ports",
    "check_map",
    "differing",
    "features",
    "kept_ports",
    "make_columns",
    "make_pairs",
    "metric_target",
    "places",
    "plain_pairs",
    "port_width",
    "trigger_positions",
    "value_and_current",
]
