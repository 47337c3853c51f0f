"""Run folders: stages that are written whole, skipped when they stand, never mixed."""
