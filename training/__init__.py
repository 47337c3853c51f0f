"""How a subject comes to be: the built-in world and model, attacks, datasets, LoRA fitting."""
