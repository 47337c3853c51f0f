"""Figures of activations: probes, consistency of the layers, attention to the trigger."""
