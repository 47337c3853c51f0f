"""Guided surgery: the smallest set of directions to cut, with and without the trigger."""
