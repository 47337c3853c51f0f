"""The frozen results that pass between the rooms: numpy, never torch."""
