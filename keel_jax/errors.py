"""The one error that is for the person at the keyboard."""


class UserError(ValueError):
    """A mistake in the options, the data or a directory, which its message says how to mend.

    Entry points print it as one paragraph, without a traceback (`runtime.cli`).
    """
