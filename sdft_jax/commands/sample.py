"""`sdft sample`: answers to prompts."""

from __future__ import annotations

from collections.abc import Sequence

from sdft_jax.config import Config
from sdft_jax.evaluation.answers import answer_encoded, encode_prompts
from sdft_jax.training.export import load_prompt_format, load_speaker, with_template_arguments


def run(config: Config, prompts: Sequence[str], n: int = 1) -> list[list[str]]:
    """Return `n` completions of each prompt, sampled by `config.sampling`.

    Those of a run have its arguments of the chat template.
    """
    config = with_template_arguments(config)
    format = load_prompt_format(config)
    encoded = encode_prompts(prompts, format, config)  # before the weights are read
    return answer_encoded(load_speaker(config, format), encoded, config, n)
