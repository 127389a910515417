"""Metrics, progress bars, tables, sampled rollouts, statistics and plots."""

from etils import epy

with epy.lazy_api_imports(globals()):
    from sdft_jax.reporting.hardware import describe_hardware
    from sdft_jax.reporting.progress import bar, track, training_bar
    from sdft_jax.reporting.tables import markdown_table, summary_table

__all__ = [
    "bar",
    "describe_hardware",
    "markdown_table",
    "summary_table",
    "track",
    "training_bar",
]
