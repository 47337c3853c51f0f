"""How prompts are rendered: published templates, a base's own, and which one fits."""
