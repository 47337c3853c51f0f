"""Figures of how adapters are learned and what is cut of them."""
