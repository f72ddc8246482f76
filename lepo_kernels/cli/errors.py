"""Errors that a person at the command line can mend: shown as one line, without a traceback."""


class UsageError(Exception):
    """What was asked for cannot work; the message says what and why."""
