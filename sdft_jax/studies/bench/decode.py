"""Greedy decoding beside transformers.generate on the same weights, and beside the memory's bandwidth.

transformers runs with a static cache (compiled on a GPU) and with its default one, and the faster counts. The
physical limit of a token is the time to read the weights and the filled part of the cache at the bandwidth
that a copy reaches on the same device; a model that fits into a CPU's own caches can beat it.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib.util
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sdft_jax.errors import SdftError
from sdft_jax.models import Model, load_model
from sdft_jax.reporting.charts import Bar
from sdft_jax.reporting.hardware import describe_hardware
from sdft_jax.sampling.decode import generate
from sdft_jax.studies.bench.models import SIZES, architecture, write_model
from sdft_jax.studies.bench.results import Measured, conditions, each_case, parser, publish
from sdft_jax.studies.bench.timing import ratios, turns
from sdft_jax.types import Params

COPIED = 2**28
"""Bytes of the array whose copy measures the bandwidth: more than any cache holds."""


@dataclasses.dataclass(frozen=True)
class Case:
    """What both sides decode."""

    size: str
    batch: int
    prompt: int
    new: int

    def __str__(self) -> str:
        return f"{self.size}, batch {self.batch}"


def main(words: Sequence[str]) -> None:
    """Run the cases of the command line.

    Raises:
        SdftError: PyTorch is missing and --peer none is not given.
    """
    a = _arguments(words)
    if a.peer == "transformers" and importlib.util.find_spec("torch") is None:
        raise SdftError(
            "sdft bench decode compares with PyTorch: pip install 'sdft_jax[bench]', or --peer none."
        )
    began, bandwidth = conditions(), copy_bandwidth()
    dtype = ("float32" if jax.default_backend() == "cpu" else "bfloat16") if a.dtype == "auto" else a.dtype
    cases = [Case(size, batch, a.prompt, a.new) for size in a.models for batch in a.batches]

    def measured(case: Case, tell: Callable[[str], None]) -> tuple[dict[str, Any], list[Bar], Any]:
        seconds, same, needed = measure(case, dtype, a.peer, a.rounds, Path(scratch), tell)
        found = {"seconds": seconds, "same tokens": same, "bytes a token": needed}
        return *compare(case, seconds, same, needed / bandwidth), dataclasses.asdict(case) | found

    with tempfile.TemporaryDirectory() as scratch:
        rows, bars, details = each_case("decode", cases, measured)
    machine = f"{describe_hardware()}, copies {bandwidth / 1e9:.1f} GB/s; {_peer_version(a.peer)}{dtype}"
    publish(Measured("decode", rows, bars, details, machine, began), a.output)


def _arguments(words: Sequence[str]) -> argparse.Namespace:
    made = parser("decode", __doc__)
    made.add_argument(
        "--models",
        nargs="+",
        choices=list(SIZES),
        default=["0.2M", "4M", "32M"],
        help="random models by their parameters (0.2M 4M 32M)",
    )
    made.add_argument("--batches", type=int, nargs="+", default=[1, 32], help="rows at a time (1 32)")
    made.add_argument("--prompt", type=int, default=64, help="tokens of every prompt (64)")
    made.add_argument("--new", type=int, default=64, help="tokens to decode (64)")
    made.add_argument("--rounds", type=int, default=5, help="counted calls of each side, in turns (5)")
    made.add_argument(
        "--peer",
        choices=["transformers", "none"],
        default="transformers",
        help="none: beside the bandwidth only (transformers)",
    )
    made.add_argument(
        "--dtype",
        choices=["auto", "float32", "bfloat16"],
        default="auto",
        help="auto: float32 on a CPU, bfloat16 on a GPU or TPU",
    )
    return made.parse_args(words)


def measure(
    case: Case, dtype: str, peer: str, rounds: int, scratch: Path, tell: Callable[[str], None]
) -> tuple[dict[str, list[float]], float | None, int]:
    """Seconds of each side and round; the share of equal tokens; bytes that a token has to read.

    `ours, one token` is the prefill: what is left of `ours` without it are the tokens of the loop.
    """
    if peer == "none":
        model = Model(architecture(case.size), compute_dtype=dtype)
        params = jax.jit(lambda key: model.init(key, dtype))(jax.random.key(0))
    else:
        directory = scratch / case.size
        if not directory.is_dir():
            write_model(case.size, directory)
        model, params = load_model(directory, dtype)
    tokens = np.random.default_rng(0).integers(0, model.config.vocab_size, (case.batch, case.prompt))
    ours = functools.partial(_ours, model, params, tokens)
    calls: dict[str, Callable[[], Any]] = {
        "ours": functools.partial(ours, case.new),
        "ours, one token": functools.partial(ours, 1),
    }
    same = None
    if peer == "transformers":
        calls |= {kind: _theirs(directory, dtype, tokens, case.new, kind) for kind in ("static", "dynamic")}
        same = float(np.mean(np.asarray(calls["ours"]()) == calls["dynamic"]()))
    return turns(calls, rounds, tell), same, bytes_per_token(model, params, case)


def _ours(model: Model, params: Params, tokens: np.ndarray, new: int) -> jax.Array:
    rollout = generate(
        model,
        params,
        tokens,
        np.ones_like(tokens, bool),
        key=jax.random.key(0),
        max_new_tokens=new,
        temperature=0.0,
    )
    return jax.block_until_ready(rollout.tokens)


def _theirs(
    directory: Path, dtype: str, tokens: np.ndarray, new: int, cache: str
) -> Callable[[], np.ndarray]:
    import torch
    from transformers import AutoModelForCausalLM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    peer = AutoModelForCausalLM.from_pretrained(directory, dtype=getattr(torch, dtype)).eval().to(device)
    peer.generation_config.eos_token_id = None  # both sides go on to the end
    prompt = torch.as_tensor(tokens, device=device)

    def call() -> np.ndarray:
        with torch.no_grad():
            found = peer.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=new,
                do_sample=False,
                pad_token_id=0,
                cache_implementation=None if cache == "dynamic" else cache,
            )
        return found[:, prompt.shape[1] :].cpu().numpy()

    return call


def bytes_per_token(model: Model, params: Params, case: Case) -> int:
    """Weights that a token's products read, and the slots of the cache that are filled, on the average."""
    config, itemsize = model.config, jnp.dtype(model.compute_dtype).itemsize
    weights = sum(w.size for w in jax.tree.leaves(params))
    if not config.tie_word_embeddings:
        weights -= params["embed"].size  # of which only the rows of a batch's tokens are read
    slots = case.prompt + case.new / 2
    cached = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * case.batch * slots
    return int((weights + cached) * itemsize)


def copy_bandwidth(repeats: int = 5) -> float:
    """Bytes a second that a copy reads and writes on the first device, the best of `repeats`."""
    x = jnp.zeros(COPIED // 4, jnp.float32)
    copy = jax.jit(lambda x, y: y.at[:].set(x + 1), donate_argnums=1)  # into memory that is already there
    y, best = jax.block_until_ready(copy(x, jnp.zeros_like(x))), 0.0
    for _ in range(repeats):
        begun = time.perf_counter()
        y = jax.block_until_ready(copy(x, y))
        best = max(best, 2 * COPIED / (time.perf_counter() - begun))
    return best


def compare(
    case: Case, seconds: Mapping[str, Sequence[float]], same: float | None, limit: float
) -> tuple[dict[str, Any], list[Bar]]:
    """A row of the table and its ratios; `limit` is the least seconds of a token by the bandwidth."""
    whole = statistics.median(seconds["ours"])
    token = (whole - statistics.median(seconds["ours, one token"])) / max(case.new - 1, 1)
    row: dict[str, Any] = {
        "model": case.size,
        "batch": case.batch,
        "tokens": f"{case.prompt} + {case.new}",
        "sdft_jax, tokens/s": f"{case.batch * case.new / whole:,.0f}",
    }
    bars = []
    if same is not None:
        cache = min(("static", "dynamic"), key=lambda kind: statistics.median(seconds[kind]))
        theirs = statistics.median(seconds[cache])
        faster, told = ratios(seconds["ours"], seconds[cache])
        row |= {
            "transformers, tokens/s": f"{case.batch * case.new / theirs:,.0f} ({cache} cache)",
            "times faster": told,
            "same tokens": f"{same:.3f}",
        }
        bars.append(Bar(str(case), "seconds of transformers", faster))
    row |= {"a token": f"{token * 1e6:,.0f} us", "of the bandwidth limit": f"{100 * limit / token:.0f} %"}
    return row, [*bars, Bar(str(case), "least seconds by the bandwidth", limit / token)]


def _peer_version(peer: str) -> str:
    if peer == "none":
        return ""
    import torch
    import transformers

    return (
        f"transformers {transformers.__version__}, torch {torch.__version__} on {torch.get_num_threads()} "
        "threads; "
    )
