"""The error of a checkpoint that cannot be used."""


class CheckpointError(ValueError):
    """A checkpoint file that cannot be read or does not fit the model; the message says why."""
