"""The patch engine: passes resumed at a layer, cells in batches, sweeps, gradients."""
