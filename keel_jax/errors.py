"""The exception type for mistakes of the user."""


class UserError(ValueError):
    """A mistake in the options, the data or a directory; the message says how to correct it.

    Entry points print it as one paragraph, without a traceback (`runtime.cli`).
    """
