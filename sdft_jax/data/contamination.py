"""Questions that are both trained on and examined: an accuracy on them says nothing, so they are refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sdft_jax.data.encoding import Encoded
from sdft_jax.errors import SdftError


def refuse_overlap(trained: Mapping[str, Sequence[Encoded]], path: str, examined: Sequence[Encoded]) -> None:
    """Refuse an evaluation that asks what training asks; prompts are compared as the student's tokens.

    Args:
        trained: source -> its rows as the student is trained on them.
        path: of the evaluation, for the message.
        examined: its rows.

    Raises:
        SdftError: how many rows, of which source, and the first of them.
    """
    for source, rows in trained.items():
        known = {row.prompt.tobytes() for row in rows}
        twice = [row.row for row in examined if row.prompt.tobytes() in known]
        if twice:
            shown = ", ".join(map(str, twice[:8])) + (", ..." if len(twice) > 8 else "")
            raise SdftError(
                f"{path}: {len(twice)} of its {len(examined)} prompts are also trained on, in {source} (rows "
                f"{shown}, counted from 0): leave them out of one of the two, or set eval.overlap=allow."
            )
