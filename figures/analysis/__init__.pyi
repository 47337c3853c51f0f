from .across.across import across_html as across_html
from .patching.patching import cell_words as cell_words
from .patching.patching import reason as reason
from .patching.patching import strongest_cell as strongest_cell
from .patching.patching import title as title
from .patching.patching import turned as turned

__all__ = [
    "across_html",
    "cell_words",
    "reason",
    "strongest_cell",
    "title",
    "turned",
]
