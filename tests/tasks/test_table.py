"""The table of tasks, and the configuration of each."""

from pathlib import Path

import pytest

from sdft_jax.config import load_config
from sdft_jax.errors import SdftError
from sdft_jax.tasks import TASKS, get_task

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize("name", TASKS)
def test_configuration_after_one_of_a_model(name):
    model = CONFIGS / "qwen2.5-3b-lora.yaml"
    config = load_config(model, [str(CONFIGS / "tasks" / f"{name}.yaml"), "train.micro_batch=4"])
    assert config.model == load_config(model).model
    assert config.lora.rank == 32
    assert config.eval.task == TASKS[name].scorer
    assert (config.data.path, config.eval.path) == (f"data/{name}/train.jsonl", f"data/{name}/test.jsonl")
    assert (config.data.context is not None) == TASKS[name].context


def test_unknown_task():
    with pytest.raises(
        SdftError, match="task 'maths' does not exist: use one of tooluse, science, medical, rule, knowledge"
    ):
        get_task("maths")
