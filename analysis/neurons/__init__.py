"""Which neurons unlearning changes, and which are active (TSBD's two observations)."""
