"""The bench: every attack with every method and seed, beside equal-budget controls."""
