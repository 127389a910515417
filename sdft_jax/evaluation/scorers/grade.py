"""`Grade`, the result of scoring one answer."""

from __future__ import annotations

import enum


class Grade(enum.Enum):
    """The grade of an answer: strict accuracy counts CORRECT, lenient accuracy PARTLY, too.

    This is the scale of the paper's knowledge task.
    """

    CORRECT = "correct"
    PARTLY = "partly"
    WRONG = "wrong"
