"""Every numeric setting at its edges: a value works, or is refused in one sentence with the key."""

import dataclasses
import math
import typing
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from runs import config_of
from sdft_jax.config import Config, from_dict, to_dict
from sdft_jax.config.overrides import flatten
from sdft_jax.errors import SdftError
from sdft_jax.reporting.reporter import SILENT
from sdft_jax.training.loop import train

pytestmark = pytest.mark.usefixtures("shared_compilations")


@dataclasses.dataclass(frozen=True)
class Numeric:
    """A setting that is a number, or a list of numbers."""

    section: type
    name: str
    field: str
    kind: type
    many: bool

    @property
    def key(self) -> str:
        return f"{self.name}.{self.field}".lstrip(".")

    def of_file(self, value: Any) -> Any:
        """Return the setting of a file with this value."""
        tree = {self.field: [value] if self.many else value}
        return flatten(to_dict(from_dict({self.name: tree} if self.name else tree, "file")))[self.key]

    def of_python(self, value: Any) -> Any:
        """Return the setting of a section that Python makes."""
        return getattr(self.section(**{self.field: (value,) if self.many else value}), self.field)


def numeric(section: Any = Config, name: str = "") -> Iterator[Numeric]:
    """Yield the numeric settings of a section and of the sections in it."""
    for field, hint in typing.get_type_hints(section).items():
        kinds = {
            hint,
            *typing.get_args(hint),
            *(x for y in typing.get_args(hint) for x in typing.get_args(y)),
        }
        if dataclasses.is_dataclass(hint):
            yield from numeric(hint, field)
        elif number := kinds & {int, float}:
            yield Numeric(section, name, field, number.pop(), typing.get_origin(hint) is tuple)


NUMERIC = {setting.key: setting for setting in numeric()}
NEVER = (True, False, "x", "", [], {}, math.nan, math.inf, -math.inf, 1e300, -1e300, 10**400, -(2**31))
"""Values that no numeric setting has."""
INTEGERS = (-1, 0, 1, 2, 1024, 1025, 2**20, 2**20 + 1, 2**24, 2**24 + 1, 2**31 - 1, 2**31, 2**32 - 1, 2**32)
FLOATS = (-1.0, -1e-30, 0.0, 1e-300, 1e-30, 1e-6, 0.5, 1 - 2**-20, 1 - 2**-24, 1.0, 1 + 1e-9, 1e6, 1e7, 1e30)


def accepted(setting: Numeric, value: Any) -> bool:
    """Return True if a file and Python may set the value, alone or with a setting that it depends on.

    Check that both agree, and how the value is refused.
    """
    verdicts = []
    for make in (setting.of_file, setting.of_python):
        try:
            made = make(value)
            made = made[0] if setting.many else made
            assert (made, type(made)) == (value, setting.kind)
            verdicts.append(True)
        except SdftError as error:
            message = str(error)
            assert setting.key in message
            assert message.isprintable()
            assert message.endswith(".")
            verdicts.append("is not set: set " in message or "is not below" in message)
    assert verdicts[0] == verdicts[1]
    return verdicts[0]


@pytest.mark.parametrize("key", NUMERIC)
def test_value_that_no_number_has(key):
    for value in NEVER:
        assert not accepted(NUMERIC[key], value), value
    if NUMERIC[key].kind is int:
        assert not accepted(NUMERIC[key], 1.5)
        assert not accepted(NUMERIC[key], 2**63)


def edges(setting: Numeric) -> tuple[Any, Any]:
    """Return the smallest and the largest accepted value."""
    values = INTEGERS if setting.kind is int else FLOATS
    good = [value for value in values if accepted(setting, value)]
    between = [value for value in values if good[0] <= value <= good[-1]]
    tiny = {1e-300, 1e-30, 1e-6}  # too small to be different from 0
    assert {*between} - {*good} <= tiny, "a gap"
    return good[0], good[-1]


EXCEPT = {
    "data.max_prompt": "drops every row",
    "data.max_teacher_prompt": "drops every row",
    "data.prompt_buckets": "is too short for the rows, or too long for memory",
    "data.teacher_buckets": "is too short for the rows, or too long for memory",
    "sampling.max_new_tokens": "is too long for memory",
    "train.completion_buckets": "is not below sampling.max_new_tokens",
    "train.batch_size": "is too large for memory",
    "train.micro_batch": "is not a divisor",
    "train.steps": "is too many for a test",
    "train.epochs": "is train.steps here",
    "train.reinvoke": "is of another method",
    "train.max_kl": "may stop the run",
    "train.stop_at": "may stop the run",
    "train.eval_every": "evaluates",
    "eval.batch_size": "is too large for memory",
    "eval.max_new_tokens": "is too long for memory",
    "optimizer.learning_rate": "gives numbers that are not finite",
    "optimizer.weight_decay": "gives numbers that are not finite",
    "mesh.data": "depends on the devices",
    "mesh.fsdp": "depends on the devices",
    "mesh.tensor": "depends on the devices",
    "mesh.expert": "depends on the devices",
    "objective.balance": "needs a model with experts",
    "lora.rank": "is above that of the projections",
    "continual.learning_rates": "is of another command",
    "continual.seeds": "is of another command",
}
"""Settings whose edges cannot be in the same run as those of all others."""
SMALL = (
    "sampling.max_new_tokens=1",
    "train.batch_size=1",
    "train.micro_batch=1",
    "eval.batch_size=1",
    "eval.max_new_tokens=1",
    "optimizer.learning_rate=0",
    "optimizer.weight_decay=0",
)
SHORT = ("train.steps=2", "eval.prior=null", "eval.limit=8", "train.eval_every=2", "mesh.data=1")
VARIANTS = ("divergence.support=union", "objective.importance=token", "teacher.schedule=periodic")


@pytest.mark.parametrize(("edge", "more"), [(0, SMALL), (1, ())], ids=["smallest", "largest"])
def test_run_at_the_edges_of_all_settings(edge, more, tiny_directory, tmp_path):
    values = [
        f"{key}={edges(setting)[edge]!r}"
        for key, setting in NUMERIC.items()
        if key not in EXCEPT and key != "baseline_learning_rate"
    ]
    config = config_of(tiny_directory, tmp_path / "run", *SHORT, *values, *VARIANTS, *more)
    run = train(config, reporter=SILENT)
    assert run.step == 2
    assert all(np.isfinite(leaf).all() for leaf in run.params["layers"].values())


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.steps=2147483647", "train.steps=2147483647: 2.15e+09 steps are more than 10,000,000"),
        ("train.epochs=1e30", "train.epochs=1e+30: 3e+30 steps are more than 10,000,000"),
        ("data.max_prompt=1", "no row is left (24 over data.max_prompt"),
        ("data.prompt_buckets=[1]", "data.prompt_buckets=(1,): row"),
        ("optimizer.learning_rate=1e30", "lower optimizer.learning_rate"),
        ("profile.steps=2:3", "profile.steps=2:3: the run has 2 steps: give a range of them, or null."),
        ("lora.rank=2147483647", "lora.rank=2147483647 is above the rank of projection k"),
        ("mesh.data=0", "set each axis to a positive number"),
        ("mesh.tensor=2147483647", "needs 2147483647 devices"),
    ],
)
def test_edge_that_a_run_refuses(override, message, tiny_directory, tmp_path):
    steps = "train.steps=null" if "epochs" in override else "train.steps=2"
    config = config_of(tiny_directory, tmp_path / "run", *SHORT, "eval.path=null", steps, override)
    with pytest.raises(SdftError) as raised:
        train(config, reporter=SILENT)
    assert message in str(raised.value)
