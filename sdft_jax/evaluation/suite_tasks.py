"""The tasks of lm-eval that a suite names, loaded with errors that a user can act on."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lm_eval.tasks import TaskManager

from sdft_jax.errors import SdftError, reason
from sdft_jax.evaluation.harness import read_generation

PRIOR = ("hellaswag", "mmlu", "truthfulqa_mc1", "truthfulqa_mc2", "winogrande", "humaneval", "ifeval")
"""The suite `prior`: skills that a model has before it learns a new one."""
CODE_VARIABLE = "HF_ALLOW_CODE_EVAL"
YAML = (".yaml", ".yml")
_CODE = ("humaneval", "mbpp")
"""The first letters of tasks that run generated code as soon as they are loaded."""


class LoadedTasks(TaskManager):
    """A task manager whose `load` returns the tasks that it has loaded."""

    def __init__(self, names: Sequence[str], include: str | None, unsafe: bool):
        """Load tasks.

        Args:
            names: names of tasks, groups and tags, patterns of them, or YAML files.
            include: a directory with YAML files of tasks.
            unsafe: True to allow tasks that run code of the model.

        Raises:
            SdftError: a task does not exist, cannot be loaded, or must not run.
        """
        if include is not None and not Path(include).is_dir():
            raise SdftError(f"--include {include}: the directory does not exist: give one with YAML files.")
        consent = unsafe and os.environ.get(CODE_VARIABLE) == "1"
        if not consent:
            _refuse_code([name for name in names if name.startswith(_CODE)], names)
        super().__init__(include_path=include, include_defaults=not _has_all(names, include))
        found = [match for name in names for match in self._matches(name)]
        items = [item for name in dict.fromkeys(found) for item in self._top_level(name)]
        try:
            self.loaded = super().load(items)
        except ValueError as error:  # a task that two of the names include
            raise SdftError(f"--suite: {reason(error)}: name one of them only.") from error
        tasks = self.loaded["tasks"]
        if not consent:
            _refuse_code([name for name, task in tasks.items() if getattr(task, "UNSAFE_CODE", False)], names)
        self.new_tokens = {
            name: read_generation(task.get_config("generation_kwargs") or {}, name)[0].max_new_tokens
            for name, task in tasks.items()
            if task.OUTPUT_TYPE == "generate_until"
        }
        """The maximum length of a completion, in tokens, of each task that has completions."""

    def load(self, task_list: Any) -> Any:
        """Return the loaded tasks."""
        return self.loaded

    def _matches(self, name: str) -> list[str]:
        if name.endswith(YAML):
            if not Path(name).is_file():
                raise SdftError(f"--suite {name}: the file does not exist: give the YAML file of a task.")
            return [name]
        if not (matches := self.match_tasks([name])):
            raise SdftError(
                f"--suite {name}: lm-eval has no task, group or tag of that name: `lm-eval ls tasks` lists "
                "them, and --include DIR adds a directory of YAML files."
            )
        return matches

    def _top_level(self, name: str) -> list[Any]:
        """Load a name, and return the group, or the tasks."""
        try:
            loaded = super().load([name])
        except ImportError as error:
            raise SdftError(
                f"task {name} requires the package {error.name or reason(error)}: run "
                "pip install 'sdft_jax[suite]', or install what the task's README lists."
            ) from error
        except OSError as error:
            raise SdftError(
                f"the data of task {name} cannot be read or downloaded ({reason(error)}): check the network "
                "and the file, or copy the cache of a machine that has the data (HF_HOME)."
            ) from error
        except Exception as error:  # a YAML file or a task's module may raise any
            raise SdftError(
                f"task {name} cannot be loaded ({type(error).__name__}: {reason(error)}): correct its YAML "
                "file, or leave the task out."
            ) from error
        groups = list(loaded.get("groups", {}).values())
        return groups[:1] or list(loaded["tasks"].values())  # the groups within a group follow it


def _has_all(names: Sequence[str], include: str | None) -> bool:
    """Return True if no name is one of lm-eval's own tasks, which takes seconds to list (12,000 files)."""
    tasks = [] if include is None else TaskManager(None, include, include_defaults=False).all_subtasks
    return all(name in tasks or name.endswith(YAML) for name in names)


def _refuse_code(refused: Sequence[str], names: Sequence[str]) -> None:
    if refused:
        others = ",".join(name for name in names if name not in refused)
        raise SdftError(
            f"{', '.join(refused)}: the task runs code that the model has written, on this machine: to allow "
            f"that, set {CODE_VARIABLE}=1 and give --confirm-run-unsafe-code; to leave it out, give "
            f"{f'--suite {others}' if others else 'another task'}."
        )
