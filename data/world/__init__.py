"""The built-in made-up world: harmless prompts with answers, from a seed."""
