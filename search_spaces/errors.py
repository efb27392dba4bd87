"""The one error that bad input raises: its message is the single line a person reads."""


class InputError(ValueError):
    """What was given is wrong; the message names the file, the field and what would be valid."""
