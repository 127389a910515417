"""The chunked divergence beside its head products alone, and beside one that makes every logit.

Value and gradients of the reverse KL over the whole vocabulary. The physical limit are the four matrix
products of the heads: logits of student and teacher, gradients of hidden states and head. Memory is what the
compiler plans for temporaries. With --topology nothing runs: the TPU compiler's own estimate for one chip.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sdft_jax.algorithm.divergence import divergence
from sdft_jax.config.settings import DivergenceConfig
from sdft_jax.plan.hlo import estimated_cycles
from sdft_jax.plan.show import compiler
from sdft_jax.plan.topologies import Topology, parse_topology, topology_devices
from sdft_jax.reporting.charts import Bar
from sdft_jax.reporting.hardware import describe_hardware
from sdft_jax.sharding import Sharding, make_mesh
from sdft_jax.studies.bench.results import Measured, conditions, each_case, parser, publish
from sdft_jax.studies.bench.timing import ratios, turns

Arrays = tuple[Array, Array, Array, Array]
"""Student's hidden states [T, D] and head [V, D], and the teacher's."""
Side = Callable[..., Any]


def chunked(arrays: Arrays, chunk: int, sharding: Sharding) -> tuple[Array, Any]:
    """Value, gradients and per-token statistics, as in `update.py`."""

    def value(student: Float[Array, "T D"], head: Float[Array, "V D"], taught: Array, taught_head: Array):
        tokens = student.shape[:1]
        weights, targets = jnp.full((1, *tokens), 1 / tokens[0]), jnp.zeros((1, *tokens), jnp.int32)
        hidden = (student[None], head, taught[None], taught_head)
        return divergence(*hidden, targets, weights, DivergenceConfig(chunk=chunk), sharding)

    return jax.value_and_grad(value, argnums=(0, 1), has_aux=True)(*arrays)


def whole(arrays: Arrays, chunk: int, sharding: Sharding) -> tuple[Array, Any]:
    """Value and gradients from logits [T, V], differentiated by JAX."""
    del chunk, sharding

    def value(student: Float[Array, "T D"], head: Float[Array, "V D"], taught: Array, taught_head: Array):
        log_s, log_t = (
            jax.nn.log_softmax(jnp.einsum("td,vd->tv", h, w, preferred_element_type=jnp.float32))
            for h, w in ((student, head), (taught, taught_head))
        )
        return jnp.mean(jnp.sum(jnp.exp(log_s) * (log_s - log_t), axis=-1))

    return jax.value_and_grad(value, argnums=(0, 1))(*arrays)


def products(arrays: Arrays, chunk: int, sharding: Sharding) -> tuple[Array, Array]:
    """Its four matrix products alone, of as many tokens at a time; the results mean nothing."""
    del sharding
    student, head, taught, taught_head = arrays

    def body(d_head: Array, hiddens: tuple[Array, Array]):
        multiply = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
        own, other = (multiply("nd,vd->nv", *pair) for pair in zip(hiddens, (head, taught_head), strict=True))
        d_hidden = multiply("nv,vd->nd", own.astype(head.dtype), head)
        d_head += multiply("nv,nd->vd", other.astype(head.dtype), hiddens[0])
        return d_head, d_hidden.astype(head.dtype)

    shape = (-1, min(chunk, len(student)), student.shape[-1])
    hiddens = (student.reshape(shape), taught.reshape(shape))
    return jax.lax.scan(body, jnp.zeros(head.shape, jnp.float32), hiddens)


SIDES: Mapping[str, Side] = {"chunked": chunked, "products": products, "whole": whole}


def main(words: Sequence[str]) -> None:
    """Run the numbers of tokens of the command line."""
    a = _arguments(words)
    began = conditions()
    topology = parse_topology(a.topology) if a.topology else None
    device = topology_devices(topology)[0] if topology else jax.devices()[0]
    sharding = Sharding(make_mesh(devices=[device]))
    dtype = ("float32" if device.platform == "cpu" else "bfloat16") if a.dtype == "auto" else a.dtype

    def measured(tokens: int, tell: Callable[[str], None]) -> tuple[dict[str, Any], list[Bar], Any]:
        seconds, memory = measure(tokens, a, sharding, dtype, topology, tell)
        found = {"tokens": tokens, "seconds": seconds, "temporary bytes": memory}
        return *compare(tokens, seconds, memory), found

    rows, bars, details = each_case("divergence", a.tokens, measured, "{} tokens".format)
    where = f"compiled for one chip of {topology.name} with {compiler()}" if topology else describe_hardware()
    what = f"vocabulary {a.vocabulary}, width {a.width}, {dtype}, chunks of {a.chunk}"
    publish(Measured("divergence", rows, bars, details, f"{what}; {where}", began), a.output)


def _arguments(words: Sequence[str]) -> argparse.Namespace:
    made = parser("divergence", __doc__)
    made.add_argument("--tokens", type=int, nargs="+", default=[1024, 2048, 4096], help="(1024 2048 4096)")
    made.add_argument("--vocabulary", type=int, default=151936, help="tokens of the heads (151936)")
    made.add_argument("--width", type=int, default=896, help="of hidden states (896, as Qwen2.5-0.5B)")
    made.add_argument("--chunk", type=int, default=512, help="tokens whose logits exist at a time (512)")
    made.add_argument(
        "--whole-up-to",
        type=int,
        default=4096,
        metavar="TOKENS",
        help="more tokens are not tried with whole logits (4096)",
    )
    made.add_argument("--rounds", type=int, default=3, help="counted calls of each side, in turns (3)")
    made.add_argument(
        "--dtype",
        choices=["auto", "float32", "bfloat16"],
        default="auto",
        help="of hidden states and heads; auto: float32 on a CPU, else bfloat16",
    )
    made.add_argument("--topology", help="ask the TPU compiler instead, of one chip such as v5e-1")
    return made.parse_args(words)


def measure(
    tokens: int,
    a: argparse.Namespace,
    sharding: Sharding,
    dtype: str,
    topology: Topology | None,
    tell: Callable[[str], None],
) -> tuple[dict[str, list[float]], dict[str, int]]:
    """Seconds a round (of a topology: one estimate) and bytes of temporaries, by side."""
    shapes, programs = [(tokens, a.width), (a.vocabulary, a.width)] * 2, {}
    for name, side in SIDES.items():
        if name != "whole" or tokens <= a.whole_up_to:
            tell(f"compiling {name}")
            programs[name] = _compile(side, shapes, dtype, a.chunk, sharding)
    memory = {name: program.memory_analysis().temp_size_in_bytes for name, program in programs.items()}
    if topology is None:
        arrays = _random(shapes, dtype)
        calls = {name: functools.partial(_finish, program, arrays) for name, program in programs.items()}
        return turns(calls, a.rounds, tell), memory
    cycles = {name: sum(estimated_cycles(program.as_text()).values()) for name, program in programs.items()}
    return {name: [count / (topology.generation.clock * 1e9)] for name, count in cycles.items()}, memory


def _compile(side: Side, shapes: Sequence[Any], dtype: str, chunk: int, sharding: Sharding) -> Any:
    abstract = tuple(jax.ShapeDtypeStruct(shape, dtype, sharding=sharding.replicated) for shape in shapes)
    return jax.jit(functools.partial(side, chunk=chunk, sharding=sharding)).lower(abstract).compile()


def _random(shapes: Sequence[Any], dtype: str) -> Arrays:
    keys, scales = jax.random.split(jax.random.key(0), 4), (1.0, 0.02) * 2
    student, head, taught, taught_head = (
        scale * jax.random.normal(key, shape, dtype)
        for key, shape, scale in zip(keys, shapes, scales, strict=True)
    )
    return student, head, taught, taught_head


def _finish(program: Any, arrays: Arrays) -> None:
    jax.block_until_ready(program(arrays))


def compare(
    tokens: int, seconds: Mapping[str, Sequence[float]], memory: Mapping[str, float]
) -> tuple[dict[str, Any], list[Bar]]:
    """A row of the table and its ratios, from seconds a round and bytes by side."""
    row: dict[str, Any] = {"tokens": tokens}
    for name in seconds:
        row[name] = f"{sorted(seconds[name])[len(seconds[name]) // 2]:.3g} s, {memory[name] / 2**20:.0f} MiB"
    slower = ratios(seconds["products"], seconds["chunked"])[1]
    bars = [Bar(f"{tokens} tokens", "its products' time", ratios(seconds["chunked"], seconds["products"])[0])]
    row["times its products"] = slower
    if "whole" in seconds:
        faster, told = ratios(seconds["chunked"], seconds["whole"])
        smaller = memory["whole"] / memory["chunked"]
        row |= {"times faster than whole": told, "times less memory": f"{smaller:.1f}"}
        bars += [
            Bar(f"{tokens} tokens", "whole logits' time", faster),
            Bar(f"{tokens} tokens", "whole logits' memory", smaller),
        ]
    return row, bars
