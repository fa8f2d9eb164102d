"""What goes wrong before the work starts."""


class InputError(ValueError):
    """Bad input: one line that names the value, what is accepted and the remedy. The command line exits with 2."""


class CheckpointError(InputError):
    """A weight file that is not what it should be."""
