"""What a study takes from outside: bases, adapters, rows, and how prompts are rendered."""
