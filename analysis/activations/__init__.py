"""What activations tell: probes, consistency of the layers, attention to the trigger."""
