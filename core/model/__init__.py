"""A base model: found, checked, loaded; token batches, and what an operation makes of it."""
