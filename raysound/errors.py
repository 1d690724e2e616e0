"""User errors, which end a job with one line and exit code 2."""


class UserError(Exception):
    """An error that the user can fix: a job prints its text, without a traceback, and exits 2."""
