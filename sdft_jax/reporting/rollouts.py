"""Sampled completions with the divergence of each token, as JSON lines and as text."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path

from sdft_jax.errors import SdftError
from sdft_jax.files import read_json_lines, write_text


@dataclasses.dataclass(frozen=True)
class RolloutRow:
    """One sampled completion, token by token."""

    prompt: str
    completion: str
    tokens: Sequence[str]
    divergence: Sequence[float]
    """KL divergence between the student and the teacher at each token."""
    log_ratio: Sequence[float]
    """log p_teacher - log p_student of each token: positive if the teacher gives it a higher probability."""


def write_rollouts(directory: str | os.PathLike[str], step: int, rows: Sequence[RolloutRow]) -> None:
    """Write the rollouts of one step to STEP.jsonl and, in readable form, to STEP.txt.

    If a resumed run repeats the step, its files are overwritten.
    """
    path = Path(directory)
    path.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"step": step, **dataclasses.asdict(row)}, ensure_ascii=False) for row in rows]
    write_text(path / f"{step:06d}.jsonl", "".join(line + "\n" for line in lines))
    text = "\n".join(rollout_text(row, f"step {step}, rollout {n + 1}") for n, row in enumerate(rows))
    write_text(path / f"{step:06d}.txt", text)


def read_rollouts(directory: str | os.PathLike[str]) -> dict[int, list[RolloutRow]]:
    """Return the rollouts of a run by step, ascending, from the files of `write_rollouts`.

    Args:
        directory: the directory `rollouts` in the output of a run.

    Raises:
        SdftError: a file is damaged, or there is none.
    """
    rollouts = {}
    for path in sorted(Path(directory).glob("*.jsonl")):
        rows, damaged = read_json_lines(path)
        try:
            rollouts[int(path.stem)] = [
                RolloutRow(*(row[field.name] for field in dataclasses.fields(RolloutRow))) for row in rows
            ]
        except (KeyError, ValueError):
            damaged += 1
        if damaged:
            raise SdftError(f"{path} is not a file of rollouts: remove it.")
    if not rollouts:
        raise SdftError(
            f"{directory} has no rollouts: give the directory `rollouts` in the output of a run with "
            "train.rollouts_every above 0."
        )
    return rollouts


def rollout_text(row: RolloutRow, title: str, max_tokens: int = 20) -> str:
    """Format the prompt, the completion and the `max_tokens` most divergent tokens, in order of position."""
    by_size = sorted(range(len(row.tokens)), key=lambda i: -row.divergence[i])[:max_tokens]
    scale = max((row.divergence[i] for i in by_size), default=0.0) or 1.0
    total = sum(row.divergence)
    lines = [f"=== {title} ===", "--- prompt", row.prompt, "--- completion", row.completion]
    lines += [f"--- {len(by_size)} of {len(row.tokens)} tokens, most divergent (sum of all: {total:.3f})"]
    lines += ["    at       KL  logT-logS  token"]
    for i in sorted(by_size):
        blocks = "#" * round(20 * row.divergence[i] / scale)
        number = f"{i:6d} {row.divergence[i]:8.4f} {row.log_ratio[i]:+10.4f}"
        lines.append(f"{number}  {row.tokens[i]!r:<20} {blocks}".rstrip())
    return "\n".join(lines) + "\n"
