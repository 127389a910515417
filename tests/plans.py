"""Helpers for the tests of `sdft plan`: a small model without weights, and estimates with chosen numbers."""

import ast
import dataclasses
import doctest
import inspect
import itertools
import json
import re

from sdft_jax.algorithm.learner import make_model
from sdft_jax.config import load_config
from sdft_jax.plan.estimate import Estimate
from sdft_jax.plan.footprint import GIB
from sdft_jax.plan.program import model_shape
from sdft_jax.sharding import Sharding, make_mesh
from tiny import QWEN3

SIZES = QWEN3 | {
    "vocab_size": 512,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "head_dim": 32,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "tie_word_embeddings": False,
}
SETTINGS = (
    "train.batch_size=8",
    "data.max_prompt=32",
    "data.max_teacher_prompt=64",
    "sampling.max_new_tokens=32",
    "divergence.chunk=64",
)


def describe_model(factory):
    """Write a config.json and a run.yaml with pytest's `tmp_path_factory`, and return their directory."""
    directory = factory.mktemp("model")
    (directory / "config.json").write_text(json.dumps(SIZES))
    (directory / "run.yaml").write_text(json.dumps({"model": {"path": str(directory)}}))
    return directory


def setting(directory, *overrides, mesh=(2, 2, 2)):
    """Return a small configuration and its model on a mesh of eight devices; `directory` holds the sizes."""
    config = load_config(
        None,
        [
            f"model.path={directory}",
            "train.batch_size=16",
            "data.max_prompt=24",
            "data.max_teacher_prompt=40",
            "sampling.max_new_tokens=8",
            "divergence.chunk=16",
            *overrides,
        ],
    )
    return config, make_model(config, model_shape(config), Sharding(make_mesh(*mesh), config.sharding))


def made_estimate(peak, batch=32, seconds=1.0, **changes):
    """Return an estimate for 16 GiB chips with a peak in GiB."""
    estimate = Estimate(
        "v5e:4x4",
        {"data": 1, "fsdp": 4, "tensor": 4},
        "",
        batch,
        16 * GIB,
        {
            "frozen parameters": 0.0,
            "parameters": 2 * GIB,
            "optimizer": 4 * GIB,
            "teacher": 2 * GIB,
            "KV cache": 1 * GIB,
            "decoding weights": 3 * GIB,
        },
        peak=peak * GIB,
        temporaries={"student": 3 * GIB, "decode": GIB},
        seconds={"decode": seconds},
    )
    return dataclasses.replace(estimate, **changes)


def pattern_examples(module):
    """Return name -> doctest of each regular expression of a module, from the string below it."""
    documentation = {
        statement.targets[0].id: string.value.value
        for statement, string in itertools.pairwise(ast.parse(inspect.getsource(module)).body)
        if isinstance(statement, ast.Assign) and isinstance(string, ast.Expr)
    }
    parser = doctest.DocTestParser()
    return {
        name: parser.get_doctest(documentation[name], vars(module), name, module.__file__, None)
        for name, value in vars(module).items()
        if isinstance(value, re.Pattern)
    }
