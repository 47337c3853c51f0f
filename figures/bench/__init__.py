"""The bench as figures and a page."""
