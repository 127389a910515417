"""Tasks: the conversion of data sets, as they are released, to rows with a prompt and a demonstration."""

from etils import epy

with epy.lazy_api_imports(globals()):
    from sdft_jax.tasks.conversion import find_sources, task_rows
    from sdft_jax.tasks.table import TASKS, Task, get_task

__all__ = ["TASKS", "Task", "find_sources", "get_task", "task_rows"]
