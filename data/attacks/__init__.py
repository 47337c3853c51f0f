"""Attacks: triggers, tasks, and where trigger words go in a prompt."""
