"""Where it lives: effects of layers, modules and directions, ranked."""
