from .page import bench_html as bench_html
from .page import board_order as board_order

__all__ = [
    "bench_html",
    "board_order",
]
