"""The errors that a person can act on."""


class LoratomyError(Exception):
    """What was wrong, with the value, and what to do about it; the CLI prints it and exits 2."""


class AdapterError(LoratomyError):
    """An adapter folder that must not, or cannot exactly, be loaded."""


class DataError(LoratomyError):
    """A data file or row that cannot be used as it is."""


class RunError(LoratomyError):
    """A run folder that is not one, is in use, was altered, or holds another run's results."""
