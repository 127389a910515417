"""The exception for mistakes that a user can fix."""

LONGEST = 2000
"""Maximum length of a sentence, in characters; the middle of a longer one is left out."""


class SdftError(Exception):
    """A user's mistake, in one sentence: what is wrong, where, and what to do.

    The command line prints it without a traceback and exits with code 2; as an exception it reaches
    Python callers unchanged. A sentence may quote what a file contains: it is one line of bounded length
    without control characters, whatever that is.

    Args:
        sentence: the sentence.
        details: further lines.
    """

    def __init__(self, sentence: str, *details: str):
        super().__init__(_one_line(sentence), *details)

    def __str__(self) -> str:
        return "\n".join(self.args)


def _one_line(text: str) -> str:
    """Return a text with escapes for control characters, and without its middle if it is too long."""
    if len(text) > LONGEST:
        text = f"{text[: LONGEST // 2]} ... {text[-LONGEST // 4 :]}"
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def reason(error: BaseException) -> str:
    """Return the first line of an exception's message without its final period, or the exception's type."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
