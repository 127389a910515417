"""The output directory of a run: its paths, its configuration, and its copy in a bucket."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import yaml
from etils import epath

from sdft_jax.config import Config, flatten, load_config, read_yaml, to_dict
from sdft_jax.config.config import PATHS, expand_home, path_settings
from sdft_jax.config.settings import OPTIMIZER_DEFAULTS
from sdft_jax.errors import SdftError
from sdft_jax.files import cache_directory, is_regular, write_errors, write_text
from sdft_jax.files.hashing import short_digest
from sdft_jax.reporting.sinks import EVALUATIONS, METRICS
from sdft_jax.training.bucket import download, is_remote, upload
from sdft_jax.training.checkpoint import read_meta
from sdft_jax.training.lock import locked
from sdft_jax.training.processes import agreed

CHECKPOINTS = "checkpoints"

RESUMABLE = (
    # Placement and execution: rounding may differ, the algorithm does not.
    "output",
    "preset",
    "mesh",
    "sharding",
    "model.remat",
    "train.micro_batch",
    "train.completion_buckets",
    "divergence.chunk",
    # A run with data.overlong=error has read no row over a limit.
    "data.overlong",
    # Reports and their frequency.
    "report",
    "profile",
    "debug",
    "checkpoint",
    "eval.batch_size",
    "eval.overlap",
    "eval.samples",
    "eval.temperature",
    "eval.top_p",
    "knowledge",
    "judge.url",
    "judge.key",
    "judge.concurrency",
    "judge.retries",
    "judge.timeout",
    "judge.cache",
    "train.log_every",
    "train.eval_every",
    "train.save_every",
    "train.rollouts_every",
    "train.rollouts_rows",
    "train.phases_every",
    # Stopping, and the baseline. Not train.steps: the learning rate decays over them.
    "train.stop_at",
    "train.patience",
    "train.max_kl",
    "train.choose",
    "baseline",
    "baseline_learning_rate",
)
"""Keys, with all keys below them, that may differ between a run and its resumption."""


@dataclasses.dataclass(frozen=True)
class RunDirectory:
    """The output of a run: a local directory, or a bucket with a local directory for all but the
    checkpoints.
    """

    output: str
    """The setting `output`."""

    @property
    def is_remote(self) -> bool:
        """True for a bucket."""
        return is_remote(self.output)

    @property
    def local(self) -> Path:
        """The local directory that holds everything except the checkpoints."""
        if not self.is_remote:
            return Path(self.output)
        return cache_directory() / "mirror" / self.output.replace("://", "/")

    @property
    def checkpoints(self) -> epath.Path:
        """The directory of the checkpoints, in the bucket if there is one."""
        path = epath.Path(self.output)
        # epath.absolute() turns gs:// into a local path
        return (path if path.is_absolute() else path.absolute()) / CHECKPOINTS

    @property
    def config(self) -> epath.Path:
        """The file of the run's configuration, which identifies a directory as a run."""
        return epath.Path(self.output) / "config.yaml"

    @property
    def metrics(self) -> Path:
        """The file with the metrics of each step, as JSON lines."""
        return self.local / METRICS

    @property
    def evaluations(self) -> Path:
        """The file with the results of each evaluation, as JSON lines."""
        return self.local / EVALUATIONS

    @property
    def rollouts(self) -> Path:
        """The directory of sampled completions with the divergence of each token."""
        return self.local / "rollouts"

    @property
    def model(self) -> Path:
        """The exported model, a Hugging Face directory."""
        return self.local / "model"

    @property
    def profile(self) -> Path:
        """The directory of profiler traces and memory profiles; TensorBoard's plugin requires this name."""
        return self.local / "profile"

    @property
    def plot(self) -> Path:
        """The picture of the run."""
        return self.local / "run.png"

    @property
    def summary(self) -> Path:
        """The file with the final table, as JSON."""
        return self.local / "summary.json"

    def below(self, name: str) -> RunDirectory:
        """Return the directory of another run inside this one."""
        return RunDirectory(f"{self.output.rstrip('/')}/{name}")

    def named(self, path: Path) -> str:
        """Return the path to show to users for a local path of this run: in the bucket if there is one."""
        return f"{self.output.rstrip('/')}/{path.relative_to(self.local)}"

    def pull(self, resumed: bool) -> None:
        """Copy files that another machine wrote to the bucket; a new run first deletes the local directory.

        Every process calls it; only process 0 copies.
        """
        if self.is_remote and jax.process_index() == 0:
            if not resumed:
                shutil.rmtree(self.local, ignore_errors=True)
            with write_errors(
                self.local, "set XDG_CACHE_HOME to a directory for the files of runs in buckets"
            ):
                self.local.mkdir(parents=True, exist_ok=True)
            download(self.output, self.local, exclude=CHECKPOINTS)

    def push(self) -> None:
        """Copy new and changed files to the bucket; only process 0 copies."""
        if self.is_remote and jax.process_index() == 0:
            upload(self.local, self.output, exclude=CHECKPOINTS)

    @contextlib.contextmanager
    def claimed(self, config: Mapping[str, Any], resumable: Sequence[str] = RESUMABLE) -> Iterator[bool]:
        """Own the directory until the context ends, and write the configuration into it.

        Yields True if this run is already there and resumes. Every process calls it; process 0 reads, writes
        and holds the lock.

        Raises:
            SdftError: another process owns the directory, or it holds another run (the message names the
                first different key) or foreign files, or cannot be written.
        """
        refusal, resumed = "", False
        with contextlib.ExitStack() as stack:
            if jax.process_index() == 0:
                try:
                    resumed = self._claim(config, resumable, stack)
                except SdftError as error:
                    refusal = str(error)
            refused, resumed = agreed([bool(refusal), resumed])
            if refused:
                raise SdftError(refusal or "process 0 cannot use the run directory: see its message.")
            yield resumed

    def load_config(self) -> Config:
        """Return the run's configuration. Raises SdftError if this is not a run directory."""
        if not is_regular(self.config):
            raise SdftError(
                f"{self.output} is not a run directory, since it has no {self.config.name}: give the "
                "`output` of a run."
            )
        return load_config(self.config, self._absolute_paths())

    def _absolute_paths(self) -> list[str]:
        """Return overrides for the relative paths that exist in the directory that the run was started in."""
        first, *_ = self.config.read_bytes().decode(errors="replace").splitlines() or [""]
        try:
            directory = Path(json.loads(first.removeprefix(_RELATIVE_TO)))
            paths = path_settings(read_yaml(self.config))
        except (ValueError, TypeError, SdftError):  # of an older version, or damaged
            return []
        return [
            f"{key}={directory / path}"
            for key, path in paths.items()
            if key != "output" and not os.path.isabs(path) and (directory / path).exists()
        ]

    def _claim(
        self, config: Mapping[str, Any], resumable: Sequence[str], stack: contextlib.ExitStack
    ) -> bool:
        try:
            epath.Path(self.output).mkdir(parents=True, exist_ok=True)
            self._resumes(config, resumable)  # before the lock's file is written to a foreign directory
            stack.enter_context(locked(self.output, self.is_remote))
            resumed = self._resumes(config, resumable)
            text = yaml.safe_dump(_plain(config), sort_keys=False, allow_unicode=True)
            write_text(self.config, f"{_RELATIVE_TO}{json.dumps(os.getcwd())}\n{text}")
        except OSError as error:
            place = f": {error.filename2 or error.filename}" if error.filename else ""
            raise SdftError(
                f"output={self.output} cannot be written ({error.strerror or error}{place}): fix this, or "
                "give another output=."
            ) from error
        return resumed

    def _resumes(self, config: Mapping[str, Any], resumable: Sequence[str]) -> bool:
        """Return True if the directory holds this run. Raises SdftError for another run or foreign files."""
        if not self.is_remote and os.path.lexists(self.checkpoints) and not self.checkpoints.is_dir():
            raise SdftError(
                f"{self.checkpoints} is not a directory: restore it from a backup, or remove it to start "
                "from scratch."
            )
        if self.config.exists() or self._has_checkpoints_of(identity(config)):
            self._refuse_other_run(config, resumable)
            return True
        self._refuse_foreign_files()
        return False

    def _refuse_other_run(self, config: Mapping[str, Any], resumable: Sequence[str]) -> None:
        """Raise SdftError for another run; accept a damaged config.yaml if the checkpoints are this run's."""
        remedy = f"give another output=, or delete {self.output}"
        stored = self._stored()
        if not stored:
            if self._has_checkpoints_of(identity(config)):
                return
            raise SdftError(
                f"{self.config} is not the configuration of a run: restore it from a backup, or give another "
                "output=."
            )
        current = _settings(_plain(config))
        stored = _settings(_DEFAULTS | stored)  # of an older version, which had fewer keys
        for key in [*current, *(key for key in stored if key not in current)]:
            if not any(_is_below(key, name) for name in resumable) and stored.get(key) != current.get(key):
                raise SdftError(
                    f"output={self.output} holds another run: its {key} is {stored.get(key)!r}, and this "
                    f"one's is {current.get(key)!r}: {remedy}."
                )

    def _stored(self) -> dict[str, Any]:
        """Return the settings in config.yaml by their dotted keys; {} if the file is damaged."""
        if not is_regular(self.config):
            return {}
        try:
            return flatten(expand_home(read_yaml(self.config)))
        except SdftError:
            return {}

    def _has_checkpoints_of(self, run: str) -> bool:
        steps = self.checkpoints.iterdir() if self.checkpoints.exists() else ()
        return {read_meta(step).get("run") for step in steps if step.name.isdigit()} == {run}

    def _refuse_foreign_files(self) -> None:
        output = epath.Path(self.output)
        if not output.exists():  # a bucket has no empty directories
            return
        names = sorted(path.name for path in output.iterdir() if not path.name.startswith("."))
        if names:
            raise SdftError(
                f"output={self.output} holds files that do not belong to a run, such as {names[0]}: give "
                "another output=, or delete it."
            )


_RELATIVE_TO = "# relative paths start at "
"""The start of config.yaml, before the directory that the run was started in."""


def identity(config: Mapping[str, Any]) -> str:
    """Return a digest of the settings that may not differ between a run and its resumption, except paths.

    A fingerprint identifies what paths refer to. Defaults do not count, so that a new key changes no digest.
    """
    flat = _settings(_plain(config))
    fixed = {
        key: value
        for key, value in sorted(flat.items())
        if not any(_is_below(key, name) for name in (*RESUMABLE, *PATHS, "continual"))
        and value != _DEFAULTS.get(key)
    }
    return short_digest(json.dumps(fixed, sort_keys=True))


def _is_below(key: str, name: str) -> bool:
    return key == name or key.startswith(name + ".")


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration as it reads back from YAML, with lists for tuples."""
    return json.loads(json.dumps(config))


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings by their dotted keys; an optimizer's constant that is not set has its default.

    Older versions wrote the constants of AdamW, which were defaults of the settings. An empty mapping, such
    as data.template_kwargs by default, has no keys.
    """
    flat = {key: value for key, value in flatten(config).items() if value != {}}
    constants = OPTIMIZER_DEFAULTS.get(flat.get("optimizer.name", "adamw"), {})
    unset = {key: value for key, value in constants.items() if flat.get(f"optimizer.{key}") is None}
    return flat | {f"optimizer.{key}": value for key, value in unset.items()}


_DEFAULTS = _settings(_plain(to_dict(Config())))
