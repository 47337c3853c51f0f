"""The face: one thin command per verb; it reads, calls and writes."""
