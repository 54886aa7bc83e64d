"""Exceptions that entry points print as one paragraph, without a traceback (`runtime.cli`)."""


class UserError(ValueError):
    """A mistake in the options, the data or a directory; the message says how to correct it.

    The exit code is `exit_codes.ERROR`.
    """


class CorruptionError(Exception):
    """A computation gave other bits than it should have, so the hardware cannot be trusted.

    The exit code is `exit_codes.CORRUPTED`.
    """
