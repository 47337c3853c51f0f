"""What every figure stands on: theme, page, export, numbers and text made safe."""
