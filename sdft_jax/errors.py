"""The one exception for mistakes that a user can mend."""


class SdftError(Exception):
    """A user's mistake, told in one sentence: what is wrong, where, and the remedy.

    The command line prints it without a traceback and exits with code 2; as an exception it reaches
    Python callers unchanged.
    """


def reason(error: BaseException) -> str:
    """The first line of an exception's message without its final period, or the exception's type."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
