"""Mistakes of users, which end a job with one line and exit code 2."""


class UserError(Exception):
    """A mistake that the user can mend: a job prints its text, without a traceback, and exits 2."""
