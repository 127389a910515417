"""Rollouts as colored text: the background of each token shows its divergence."""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Sequence

from sdft_jax.reporting.rollouts import RolloutRow, rollout_text


@dataclasses.dataclass(frozen=True)
class ColoredText:
    """A text that a notebook shows as HTML."""

    html: str
    text: str
    """The same without colors, for a console."""

    def _repr_html_(self) -> str:
        return self.html

    def __repr__(self) -> str:
        return self.text


def color_rollouts(rows: Sequence[RolloutRow], scale: float | None = None) -> ColoredText:
    """Return the completions with a background from white (no divergence) to red for each token.

    A token's tooltip has its divergence and log ratio in nats.

    Args:
        rows: the rollouts, from `read_rollouts`.
        scale: the divergence that is red, in nats; None for the largest one. Give several calls the same
            scale to compare their colors.
    """
    largest = max((nats for row in rows for nats in row.divergence), default=0.0)
    parts = [_row_html(row, scale or largest or 1.0) for row in rows]
    text = "\n".join(rollout_text(row, f"rollout {n}") for n, row in enumerate(rows, start=1))
    return ColoredText("".join(parts), text)


def _row_html(row: RolloutRow, scale: float) -> str:
    tokens = [
        _token_html(*token, scale) for token in zip(row.tokens, row.divergence, row.log_ratio, strict=True)
    ]
    # a tokenizer of words removes the spaces between them
    separator = " " if row.completion == " ".join(row.tokens) else ""
    mean = sum(row.divergence) / max(len(row.divergence), 1)
    return (
        '<div style="margin:0.6em 0;padding:0.5em;background:#fff;color:#000;font-family:monospace">'
        f'<div style="color:#666;white-space:pre-wrap">{html.escape(row.prompt)}</div>'
        f'<div style="white-space:pre-wrap;line-height:1.7">{separator.join(tokens)}</div>'
        f'<div style="color:#666">mean {mean:.3f} nats per token</div></div>'
    )


def _token_html(token: str, divergence: float, log_ratio: float, scale: float) -> str:
    lightness = 255 - round(165 * min(max(divergence / scale, 0.0), 1.0))
    title = f"divergence {divergence:.3f}, log ratio {log_ratio:+.3f}"
    style = f"background:rgb(255,{lightness},{lightness})"
    return f'<span style="{style}" title="{title}">{html.escape(token)}</span>'
