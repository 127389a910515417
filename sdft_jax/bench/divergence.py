"""Chunked divergence against the plain one that makes every logit: `sdft bench divergence`.

Prints time and temporary memory (as the compiler plans it) of value and gradients, and their ratios.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from sdft_jax.bench.timing import paired, ratio
from sdft_jax.divergence import divergence
from sdft_jax.report import hardware
from sdft_jax.settings import DivergenceConfig
from sdft_jax.sharding import single_device


def naive(student, student_head, teacher, teacher_head, weights):
    """Reverse KL from whole [B, T, V] logits, differentiated by JAX."""
    log_s, log_t = (
        jax.nn.log_softmax(jnp.einsum("btd,vd->btv", h, w, preferred_element_type=jnp.float32))
        for h, w in ((student, student_head), (teacher, teacher_head))
    )
    return jnp.sum(weights * jnp.sum(jnp.exp(log_s) * (log_s - jax.lax.stop_gradient(log_t)), axis=-1))


def _finish(function: Any, *arguments: Any) -> None:
    jax.block_until_ready(function(*arguments))


def main(words: Sequence[str]) -> None:
    """Run with the sizes of the command line."""
    parser = argparse.ArgumentParser(prog="sdft bench divergence", description=__doc__)
    for name, default in dict(batch=4, tokens=256, width=256, vocabulary=32768, chunk=256).items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--dtype", default="float32")
    a = parser.parse_args(words)
    keys = jax.random.split(jax.random.key(0), 4)
    hidden, head = (a.batch, a.tokens, a.width), (a.vocabulary, a.width)
    arrays = [
        jax.random.normal(key, shape, a.dtype) * scale
        for key, shape, scale in zip(keys, (hidden, head) * 2, (1.0, 0.02) * 2, strict=True)
    ]
    weights = jnp.ones((a.batch, a.tokens)) / (a.batch * a.tokens)
    config = DivergenceConfig(chunk=a.chunk)

    def chunked(student, student_head, teacher, teacher_head, weights):
        targets = jnp.zeros(weights.shape, jnp.int32)
        return divergence(
            student, student_head, teacher, teacher_head, targets, weights, config, single_device()
        )[0]

    print(f"{hardware()}\n{vars(a)}")
    compiled = [
        jax.jit(jax.value_and_grad(f, argnums=(0, 1))).lower(*arrays, weights).compile()
        for f in (chunked, naive)
    ]
    plans: list[Any] = [c.memory_analysis() for c in compiled]
    memory = [plan.temp_size_in_bytes / 2**20 for plan in plans]
    ours, plain = (functools.partial(_finish, c, *arrays, weights) for c in compiled)
    seconds = paired(ours, plain)
    for name, mib, times in zip(("chunked", "whole logits"), memory, seconds, strict=True):
        print(f"{name:<13} {mib:9.1f} MiB temporary   {sorted(times)[len(times) // 2] * 1e3:9.1f} ms")
    print(f"whole logits / chunked: memory {memory[1] / memory[0]:.1f}x, time {ratio(*seconds)}")
