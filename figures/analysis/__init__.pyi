from .across import across_html as across_html
from .patching import cell_words as cell_words
from .patching import reason as reason
from .patching import strongest_cell as strongest_cell
from .patching import title as title
from .patching import turned as turned

__all__ = [
    "across_html",
    "cell_words",
    "reason",
    "strongest_cell",
    "title",
    "turned",
]
