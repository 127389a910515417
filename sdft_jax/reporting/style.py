"""Colors, markers and matplotlib settings shared by all plots."""

from __future__ import annotations

import os
from typing import Any

from sdft_jax.files import open_replacement

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""The palette of Okabe and Ito, which color-blind readers can distinguish."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<")
"""Shapes that differ in addition to the color."""
GREY, BLACK = "#666666", "#222222"
STYLE: Any = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#e5e5e5",
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "legend.frameon": False,
}
FIGURE_STYLE: Any = {
    **STYLE,
    "figure.constrained_layout.w_pad": 0.1,
    "figure.constrained_layout.h_pad": 0.1,
    "font.size": 13,
    "axes.titlesize": 14,
    "legend.fontsize": 12.5,
}
"""`STYLE` with larger text, for figures that pages show at half their size."""


def save_figure(figure: Any, path: str | os.PathLike[str], dpi: int = 150) -> None:
    """Write a figure as PNG, in place of what has its name."""
    with open_replacement(path, "wb") as file:
        figure.savefig(file, dpi=dpi, format="png")
    file.close()
