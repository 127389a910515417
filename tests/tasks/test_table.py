"""The table of tasks, and the configuration of each."""

from pathlib import Path

import pytest

from sdft_jax.config import load_config
from sdft_jax.errors import SdftError
from sdft_jax.tasks import TASKS, get_task

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize(
    ("size", "rank"), [("3b-lora", 32), ("3b", 0), ("7b", 0), ("7b-qlora", 32), ("14b", 0)]
)
@pytest.mark.parametrize("name", TASKS)
def test_configuration_after_one_of_a_model(name, size, rank):
    model = CONFIGS / f"qwen2.5-{size}.yaml"
    config = load_config(model, [str(CONFIGS / "tasks" / f"{name}.yaml"), "train.micro_batch=4"])
    assert config.model == load_config(model).model
    assert config.lora.rank == rank
    assert config.eval.task == TASKS[name].scorer
    assert (config.data.path, config.eval.path) == (f"data/{name}/train.jsonl", f"data/{name}/test.jsonl")
    assert (config.data.context is not None) == TASKS[name].context
    assert config.judge.prompt == ("medical-v1" if name == "medical" else "facts-v1")


def test_unknown_task():
    with pytest.raises(
        SdftError, match="task 'maths' does not exist: use one of tooluse, science, medical, rule, knowledge"
    ):
        get_task("maths")
