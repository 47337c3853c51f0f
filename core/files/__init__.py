"""Files: written whole or not at all, read within bounds, and only where they may be."""
