"""How a subject comes to be: recipes, the one fitting loop, trackers, the built-in model."""
