"""Figures of neurons: what unlearning changes in them, and how active they are."""
