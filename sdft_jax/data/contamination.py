"""Detection of contamination: evaluation prompts that are also in the training data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sdft_jax.data.encoding import Encoded
from sdft_jax.data.lazy_rows import checked
from sdft_jax.errors import SdftError


def refuse_contamination(
    trained: Mapping[str, Sequence[Encoded]], path: str, evaluated: Sequence[Encoded]
) -> None:
    """Raise SdftError if an evaluation contains training prompts.

    Prompts are compared by the tokens of the student's prompt. Of a large source, the rows count that are
    known before the first step.

    Args:
        trained: source -> its training rows.
        path: the evaluation's source, for the error message.
        evaluated: the evaluation's rows.

    Raises:
        SdftError: the message has the number of contaminated rows, the first of them and their source.
    """
    for source, rows in trained.items():
        training_prompts = {row.prompt.tobytes() for row in checked(rows)}
        duplicates = [row.row for row in evaluated if row.prompt.tobytes() in training_prompts]
        if duplicates:
            numbers = ", ".join(map(str, duplicates[:8])) + (", ..." if len(duplicates) > 8 else "")
            raise SdftError(
                f"{path}: {len(duplicates)} of its {len(evaluated)} prompts are also training prompts in "
                f"{source} (rows {numbers} of the evaluation, counted from 0): remove them from one of the "
                "two, or set eval.overlap=allow."
            )
