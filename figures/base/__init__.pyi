from .export import Exported as Exported
from .export import check_page as check_page
from .export import write_figures as write_figures
from .export import write_page as write_page
from .figure import FIGURES as FIGURES
from .figure import Figure as Figure
from .figure import draw as draw
from .figure import draw_record as draw_record
from .figure import draw_sections as draw_sections
from .figure import slug as slug
from .figure import unique as unique
from .grid import Layout as Layout
from .grid import kind_of as kind_of
from .grid import layout as layout
from .grid import ordered as ordered
from .grid import root_sum_of_squares as root_sum_of_squares
from .grid import strongest as strongest
from .lines import area as area
from .lines import error_bars as error_bars
from .lines import layer_lines as layer_lines
from .lines import line_panels as line_panels
from .maps import Panel as Panel
from .maps import block_words as block_words
from .maps import layer_labels as layer_labels
from .maps import layer_map as layer_map
from .maps import layer_name as layer_name
from .maps import module_panel as module_panel
from .page import figure_block as figure_block
from .quantities import Quantity as Quantity
from .quantities import written as written
from .text import change as change
from .text import html as html
from .text import interval as interval
from .text import number as number
from .text import percent as percent
from .text import plural as plural
from .text import rate as rate
from .text import token as token
from .text import two_readings as two_readings
from .text import visible as visible
from .theme import BLUE as BLUE
from .theme import FIXED as FIXED
from .theme import GREEN as GREEN
from .theme import GREY as GREY
from .theme import GRID as GRID
from .theme import INK as INK
from .theme import MAGNITUDE as MAGNITUDE
from .theme import MUTED as MUTED
from .theme import ORANGE as ORANGE
from .theme import OTHERS as OTHERS
from .theme import PURPLE as PURPLE
from .theme import SKY as SKY
from .theme import SYMBOLS as SYMBOLS
from .theme import VERMILLION as VERMILLION
from .theme import YELLOW as YELLOW
from .theme import clear as clear
from .theme import counts as counts
from .theme import diverging as diverging
from .theme import largest as largest
from .theme import looks as looks
from .theme import magnitude as magnitude
from .theme import named as named
from .theme import panels as panels
from .theme import single as single

__all__ = [
    "BLUE",
    "FIGURES",
    "FIXED",
    "GREEN",
    "GREY",
    "GRID",
    "INK",
    "MAGNITUDE",
    "MUTED",
    "ORANGE",
    "OTHERS",
    "PURPLE",
    "SKY",
    "SYMBOLS",
    "VERMILLION",
    "YELLOW",
    "Exported",
    "Figure",
    "Layout",
    "Panel",
    "Quantity",
    "area",
    "block_words",
    "change",
    "check_page",
    "clear",
    "counts",
    "diverging",
    "draw",
    "draw_record",
    "draw_sections",
    "error_bars",
    "figure_block",
    "html",
    "interval",
    "kind_of",
    "largest",
    "layer_labels",
    "layer_lines",
    "layer_map",
    "layer_name",
    "layout",
    "line_panels",
    "looks",
    "magnitude",
    "module_panel",
    "named",
    "number",
    "ordered",
    "panels",
    "percent",
    "plural",
    "rate",
    "root_sum_of_squares",
    "single",
    "slug",
    "strongest",
    "token",
    "two_readings",
    "unique",
    "visible",
    "write_figures",
    "write_page",
    "written",
]
