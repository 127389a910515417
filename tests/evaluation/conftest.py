"""A random model with rows to answer, shared by the tests of evaluations."""

import pytest

from runs import config_of
from sdft_jax.data.encoding import make_format
from sdft_jax.evaluation.eval_set import load_eval_set
from sdft_jax.models import load_model
from sdft_jax.models.hf.tokenizer import load_tokenizer, read_eos_ids
from sdft_jax.models.speaker import Speaker

LENGTH = 5
"""The maximum length of a completion, in tokens."""


@pytest.fixture(scope="session")
def setting(tiny_directory):
    """Return (model with its tokenizer, rows, configuration): 6 rows in batches of 4, the last one padded."""
    config = config_of(
        tiny_directory, "unused", "eval.limit=6", "eval.batch_size=4", f"sampling.max_new_tokens={LENGTH}"
    )
    tokenizer = load_tokenizer(str(tiny_directory))
    speaker = Speaker(*load_model(tiny_directory), tokenizer, read_eos_ids(tokenizer, tiny_directory))
    format = make_format(tokenizer, config.data, speaker.eos_ids)
    return speaker, load_eval_set(config.eval.path, config, format, teacher=True), config
