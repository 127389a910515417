"""Greedy decoding, compared with transformers.generate on the same weights and with the memory bandwidth.

transformers runs with a static cache (compiled on a GPU) and with its default cache; the faster one counts.
The physical limit of a token is the time to read the weights and the filled part of the KV cache at the
bandwidth of a copy on the same device. A model that fits in a CPU's caches can exceed this limit.
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

from sdft_jax.config.settings import SamplingConfig
from sdft_jax.errors import SdftError
from sdft_jax.models import Model, load_model
from sdft_jax.models.cache import KeysValues
from sdft_jax.reporting.charts import Bar
from sdft_jax.reporting.hardware import describe_hardware
from sdft_jax.sampling import generate, make_key
from sdft_jax.studies.bench.models import SIZES, architecture, write_model
from sdft_jax.studies.bench.results import Measured, conditions, each_case, parser, positive, publish
from sdft_jax.studies.bench.timing import ratios, turns
from sdft_jax.types import Params, Sequences

COPIED = 2**28
"""The size of the array that is copied to measure the bandwidth, in bytes; larger than any cache."""


@dataclasses.dataclass(frozen=True)
class Case:
    """A workload that both libraries decode."""

    size: str
    batch: int
    prompt: int
    new: int

    def __str__(self) -> str:
        return f"{self.size}, batch {self.batch}"


def main(argv: Sequence[str]) -> None:
    """Run the cases that the command line selects.

    Raises:
        SdftError: PyTorch is not installed and `--peer none` is not given.
    """
    args = _parse_arguments(argv)
    if args.peer == "transformers" and importlib.util.find_spec("torch") is None:
        raise SdftError(
            "sdft bench decode requires PyTorch, which is not installed: run pip install -e '.[bench]', "
            "or pass --peer none."
        )
    start_conditions, bandwidth = conditions(), copy_bandwidth()
    dtype = (
        ("float32" if jax.default_backend() == "cpu" else "bfloat16") if args.dtype == "auto" else args.dtype
    )
    cases = [Case(size, batch, args.prompt, args.new) for size in args.models for batch in args.batches]

    def measure_case(case: Case, report: Callable[[str], None]) -> tuple[dict[str, Any], list[Bar], Any]:
        seconds, same, needed = measure(case, dtype, args.peer, args.rounds, Path(scratch), report)
        measurements = {"seconds": seconds, "same tokens": same, "bytes a token": needed}
        return *compare(case, seconds, same, needed / bandwidth), dataclasses.asdict(case) | measurements

    with tempfile.TemporaryDirectory() as scratch:
        rows, bars, details = each_case("decode", cases, measure_case)
    machine = f"{describe_hardware()}, copies {bandwidth / 1e9:.1f} GB/s; {_peer_version(args.peer)}{dtype}"
    publish(Measured("decode", rows, bars, details, machine, start_conditions), args.output)


def _parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    options = parser("decode", __doc__)
    options.add_argument(
        "--models",
        nargs="+",
        choices=list(SIZES),
        default=["0.2M", "4M", "32M"],
        help="random models, named by their number of parameters (default: 0.2M 4M 32M)",
    )
    options.add_argument(
        "--batches", type=positive, nargs="+", default=[1, 32], help="batch sizes (default: 1 32)"
    )
    options.add_argument("--prompt", type=positive, default=64, help="tokens per prompt (default: 64)")
    options.add_argument("--new", type=positive, default=64, help="tokens to decode per row (default: 64)")
    options.add_argument(
        "--rounds",
        type=positive,
        default=5,
        help="measured rounds, in which the libraries alternate (default: 5)",
    )
    options.add_argument(
        "--peer",
        choices=["transformers", "none"],
        default="transformers",
        help="none: compare with the bandwidth only (default: transformers)",
    )
    options.add_argument(
        "--dtype",
        choices=["auto", "float32", "bfloat16"],
        default="auto",
        help="default: auto, which is float32 on a CPU and bfloat16 on a GPU or TPU",
    )
    return options.parse_args(argv)


def measure(
    case: Case, dtype: str, peer: str, rounds: int, scratch: Path, report: Callable[[str], None]
) -> tuple[dict[str, list[float]], float | None, int]:
    """Return the seconds by side and round, the share of equal tokens, and the bytes read per token.

    `ours, one token` is the prefill; the difference from `ours` is the time of the decode loop.
    """
    if peer == "none":
        model = Model(architecture(case.size), compute_dtype=dtype)
        params = jax.jit(lambda key: model.init(key, dtype))(jax.random.key(0))
    else:
        directory = scratch / case.size
        if not directory.is_dir():
            write_model(case.size, directory)
        model, params = load_model(directory, dtype)
    tokens = np.random.default_rng(0).integers(0, model.architecture.vocab_size, (case.batch, case.prompt))
    ours = functools.partial(_decode, model, params, tokens)
    calls: dict[str, Callable[[], Any]] = {
        "ours": functools.partial(ours, case.new),
        "ours, one token": functools.partial(ours, 1),
    }
    same = None
    if peer == "transformers":
        calls |= {
            kind: _transformers_call(directory, dtype, tokens, case.new, kind)
            for kind in ("static", "dynamic")
        }
        same = float(np.mean(np.asarray(calls["ours"]()) == calls["dynamic"]()))
    return turns(calls, rounds, report), same, bytes_per_token(model, params, case)


def _decode(model: Model, params: Params, tokens: np.ndarray, new: int) -> jax.Array:
    prompt: Any = (tokens, np.ones_like(tokens, bool))
    greedy = SamplingConfig(max_new_tokens=new, temperature=0.0)
    rollout = generate(model, params, Sequences(*prompt), make_key(0), greedy)
    return jax.block_until_ready(rollout.tokens)


def _transformers_call(
    directory: Path, dtype: str, tokens: np.ndarray, new: int, cache: str
) -> Callable[[], np.ndarray]:
    import torch
    from transformers import AutoModelForCausalLM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    peer = AutoModelForCausalLM.from_pretrained(directory, dtype=getattr(torch, dtype)).eval().to(device)
    peer.generation_config.eos_token_id = None  # both sides decode every token
    prompt = torch.as_tensor(tokens, device=device)

    def call() -> np.ndarray:
        with torch.no_grad():
            generated = peer.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=new,
                do_sample=False,
                pad_token_id=0,
                cache_implementation=None if cache == "dynamic" else cache,
            )
        return generated[:, prompt.shape[1] :].cpu().numpy()

    return call


def bytes_per_token(model: Model, params: Params, case: Case) -> int:
    """Return the bytes that a token moves at least: weights, keys and values in filled slots, by each layer
    that reads them, and the states of delta nets, which are read and written. It is a mean over the tokens of
    a completion.

    Of E experts, a token of B rows reads E (1 - (1 - k/E) ** B) on average, if all are equally likely.
    """
    config, itemsize = model.architecture, jnp.dtype(model.compute_dtype).itemsize
    weights = sum(w.size for w in jax.tree.leaves(params))
    if not config.tie_word_embeddings:
        weights -= params["embed"].size  # only the rows of the batch's tokens are read
    if config.layer_embedding:
        weights -= params["layer_embed"].size
    if config.experts:
        of_experts = sum(w.size for name, w in params["layers"].items() if name.startswith("experts_"))
        weights -= of_experts * (1 - config.experts.per_token / config.experts.count) ** case.batch
    moved = weights * itemsize
    cache = jax.eval_shape(lambda: model.init_cache(case.batch, case.prompt + case.new))
    for kind in range(len(config.kinds)):
        owner = config.owner_of(kind)
        state, readers = cache.states[owner], len(config.layers_of(kind)) / len(config.layers_of(owner))
        size = readers * sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
        if isinstance(state, KeysValues):
            moved += size * min((case.prompt + case.new / 2) / state.slots, 1.0)
        else:
            moved += 2 * size
    return int(moved)


def copy_bandwidth(repeats: int = 5) -> float:
    """Return the maximum bytes per second that `repeats` copies read and write on the first device."""
    x = jnp.zeros(COPIED // 4, jnp.float32)
    copy = jax.jit(lambda x, y: y.at[:].set(x + 1), donate_argnums=1)  # donation excludes the allocation
    y, best = jax.block_until_ready(copy(x, jnp.zeros_like(x))), 0.0
    for _ in range(repeats):
        start = time.perf_counter()
        y = jax.block_until_ready(copy(x, y))
        best = max(best, 2 * COPIED / (time.perf_counter() - start))
    return best


def compare(
    case: Case, seconds: Mapping[str, Sequence[float]], same: float | None, limit: float
) -> tuple[dict[str, Any], list[Bar]]:
    """Return a table row and its ratios; `limit` is the minimum seconds per token for the bandwidth."""
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
        faster, faster_text = ratios(seconds["ours"], seconds[cache])
        row |= {
            "transformers, tokens/s": f"{case.batch * case.new / theirs:,.0f} ({cache} cache)",
            "times faster": faster_text,
            "same tokens": f"{same:.3f}",
        }
        bars.append(Bar(str(case), "seconds, transformers", faster))
    row |= {"a token": f"{token * 1e6:,.0f} us", "of the bandwidth limit": f"{100 * limit / token:.0f} %"}
    return row, [*bars, Bar(str(case), "seconds, bandwidth limit", limit / token)]


def _peer_version(peer: str) -> str:
    if peer == "none":
        return ""
    import torch
    import transformers

    return (
        f"transformers {transformers.__version__}, torch {torch.__version__} on {torch.get_num_threads()} "
        "threads; "
    )
