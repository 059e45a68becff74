"""The one exception of this package."""


class ModelError(Exception):
    """A model that cannot be found, read or trusted; the message says what to do about it."""
