"""The exception for mistakes that a user can fix."""


class SdftError(Exception):
    """A user's mistake, in one sentence: what is wrong, where, and what to do.

    The command line prints it without a traceback and exits with code 2; as an exception it reaches
    Python callers unchanged.
    """


def reason(error: BaseException) -> str:
    """Return the first line of an exception's message without its final period, or the exception's type."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
