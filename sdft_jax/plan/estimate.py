"""One update on one mesh: compiled for the topology, and what the compiler says about it."""

from __future__ import annotations

import dataclasses
import glob
import re
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from sdft_jax.algorithm.state import check_batch, make_model
from sdft_jax.config import Config
from sdft_jax.config.methods import METHODS
from sdft_jax.models import ModelConfig
from sdft_jax.plan.footprint import GIB, by_kind, fullest, update_arrays
from sdft_jax.plan.hlo import Collective, collectives, estimated_cycles
from sdft_jax.plan.program import lower_update, matmul_work
from sdft_jax.plan.topologies import Topology
from sdft_jax.sharding import Sharding, make_mesh
from sdft_jax.sharding.rules import Rules

PHASES = {
    "prefill": r"/rollout/prefill",
    "decode": r"/rollout",
    "teacher": r"teacher",
    "backward": r"transpose\(jvp\(student",
    "student": r"jvp\(student",
    "divergence": r"/learn/.*shard_map",
    "optimizer": r"/optimizer",
}
"""Name -> what its scopes look like, the first that fits; `optimizer` has the teacher's motion too."""
KERNELS = "attention kernels"
STATE = ("parameters", "optimizer", "teacher")
_PEAK = re.compile(r"Live ranges at \d+ \(peak\):\n(.*?)\n(?:\s*\n|  \S)", re.S)
_LIVE = re.compile(r"^\s+([\w.\-]+)(\{[\d,]*\}): (\d+) bytes", re.M)
_ALLOCATION = re.compile(r"^allocation \d+: size \d+, parameter .*\n((?: value: .*\n)+)", re.M)
_VALUE = re.compile(r"^ value: <\d+ ([\w.\-]+)(\{[\d,]*\})?(?: \(\w+\))? @", re.M)
_OUT_OF_MEMORY = re.compile(r"([\d.]+)([KMGT])\)? exceeds available HBM|Used ([\d.]+)([KMGT]) of")
_UNITS = {"K": 2.0**10, "M": 2.0**20, "G": GIB, "T": 2.0**40}


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What one update needs on each device, in bytes, seconds and floating-point operations."""

    topology: str
    mesh: Mapping[str, int]
    rules: str
    """Name of the sharding rules."""
    batch: int
    limit: float
    """Bytes that a device has for a program."""
    parts: Mapping[str, float]
    """Bytes of what has a known shape; the state is always there, the others while they are needed."""
    peak: float = 0.0
    """Bytes at the fullest moment; of a program that is refused, what it would need at least."""
    temporaries: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Bytes besides the state at that moment, by the phase that made them."""
    flops: float = 0.0
    """Of matrix products."""
    exchanges: Sequence[Collective] = ()
    seconds: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """By phase, from the compiler's cycle estimates, without waiting for other chips; kernels have none, and
    stand here with what they take at the chip's peak rate."""
    roofline: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Seconds that the chip's peak rates allow, of `rollout` and `learn`."""
    compile_seconds: float = 0.0
    refusal: str = ""
    """Why it does not fit or was not compiled."""
    largest_batch: int | None = None
    advice: Sequence[str] = ()
    """What would make it smaller, and what it would then need."""

    @property
    def state(self) -> float:
        """Bytes of the training state."""
        return sum(self.parts[name] for name in STATE)

    @property
    def fits(self) -> bool:
        """Whether everything finds room."""
        return not self.refusal and self.peak <= self.limit

    @property
    def total_seconds(self) -> float:
        """Of all phases."""
        return sum(self.seconds.values())

    @property
    def dominant(self) -> str:
        """What takes most of the memory, or, where there was no program to look at, most of the state."""
        shares = {name: self.parts[name] for name in STATE} | dict(self.temporaries)
        name = max(shares, key=lambda key: shares[key])
        return f"{name} {shares[name] / GIB:.1f} GiB"


def estimate(
    config: Config,
    shape: ModelConfig,
    topology: Topology,
    devices: Sequence[Any],
    mesh: Mapping[str, int],
    rules: Rules,
    rules_name: str,
) -> Estimate:
    """Compile the update for the topology and read what the compiler has to say.

    Raises:
        SdftError: the mesh does not divide the model or the batch.
    """
    sharding = Sharding(make_mesh(**mesh, devices=devices), rules)
    check_batch(config, sharding)
    model = make_model(config, shape, sharding)
    limit = topology.generation.hbm_gib * GIB
    held = update_arrays(config, model)
    parts = dict.fromkeys(STATE, 0.0) | by_kind(held)  # SFT and a live teacher have no teacher's weights
    found = Estimate(topology.name, dict(mesh), rules_name, config.train.batch_size, limit, parts)
    if found.state > limit:
        reason = f"not compiled: the state alone is {found.state / GIB:.1f} GiB a device"
        return dataclasses.replace(found, peak=fullest(held)[1], refusal=reason)
    lowered = lower_update(config, model, sharding)
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as dump:
        try:
            compiled = lowered.compile(compiler_options={"xla_dump_to": dump})
        except jax.errors.JaxRuntimeError as error:
            return _refused(found, str(error))
        live, assigned = (
            "".join(_read(path) for path in sorted(glob.glob(f"{dump}/*{name}.txt")))
            for name in ("-live-range", "-buffer-assignment")
        )
    spent = time.monotonic() - begun
    text, peak = compiled.as_text(), float(compiled.memory_analysis().peak_memory_in_bytes)
    work = matmul_work(config, shape)
    kernels = 0.0 if model.kernel == "xla" else work.attention / len(devices)
    flops = (work.rollout + work.learn) / len(devices)
    rate = topology.generation.teraflops * 1e12
    return dataclasses.replace(
        found,
        peak=peak,
        temporaries=_temporaries(text, live, assigned, peak - found.state),
        flops=flops,
        exchanges=tuple(collectives(text)),
        seconds=_seconds(text, topology.generation.clock * 1e9, kernels / rate),
        roofline=_roofline(config, found.parts, topology, work.rollout / len(devices), flops),
        compile_seconds=spent,
    )


def phase_of(scope: str) -> str:
    """The phase that a scope of the program belongs to."""
    return next((name for name, pattern in PHASES.items() if re.search(pattern, scope)), "other")


def _seconds(text: str, clock: float, kernels: float) -> dict[str, float]:
    found: dict[str, float] = defaultdict(float, {KERNELS: kernels} if kernels else {})
    for scope, cycles in estimated_cycles(text).items():
        found[phase_of(scope)] += cycles / clock
    return {name: found[name] for name in (*PHASES, KERNELS, "other") if name in found}


def _temporaries(text: str, live: str, assigned: str, size: float) -> dict[str, float]:
    """Bytes by phase of what lives at the peak besides the state; inside loops nothing is told apart.

    Args:
        text: of the program, whose operations have scopes.
        live: the compiler's list of what lives when.
        assigned: its list of what lies where: what lies in the state's own memory is no more of it.
        size: of all that is to be told apart.
    """
    values = (_VALUE.findall(block) for block in _ALLOCATION.findall(assigned))
    in_state = {(name, index or "{}") for block in values for name, index in block}
    peak = _PEAK.search(live)
    scopes = dict(re.findall(r'^\s+(?:ROOT )?%?([\w.\-]+) = .*?op_name="([^"]*)"', text, re.M))
    found: dict[str, float] = defaultdict(float)
    for name, index, count in _LIVE.findall(peak[0]) if peak else ():
        if (name, index) not in in_state:
            found[phase_of(scopes.get(name, ""))] += float(count)
    found["inside loops"] = max(size - sum(found.values()), 0.0)
    return {name: found[name] for name in sorted(found, key=lambda key: -found[key]) if found[name]}


def _roofline(
    config: Config, parts: Mapping[str, float], topology: Topology, sampled: float, flops: float
) -> dict[str, float]:
    """Products at the peak rate; a token of the rollout reads all weights and, on average, half the cache."""
    rate = topology.generation.teraflops * 1e12
    if METHODS[config.train.method].samples is None:
        return {"learn": flops / rate}
    read = parts["decoding weights"] + parts["KV cache"] / 2
    reading = config.sampling.max_new_tokens * read / (topology.generation.bandwidth * 1e9)
    return {"rollout": max(sampled / rate, reading), "learn": (flops - sampled) / rate}


def _refused(found: Estimate, message: str) -> Estimate:
    """Why the compiler gave up: too large, and by how much, or whatever it says."""
    told = _OUT_OF_MEMORY.search(message)
    if "RESOURCE_EXHAUSTED" not in message or told is None:
        reason = f"the compiler refuses it: {message.strip().splitlines()[0]}"
        return dataclasses.replace(found, peak=found.state, refusal=reason)
    number, unit = (told[1], told[2]) if told[1] else (told[3], told[4])
    needed = float(number) * _UNITS[unit]
    reason = f"needs {needed / GIB:.1f} GiB a device, {(needed - found.limit) / GIB:.1f} GiB too much"
    others = {"all but the state": needed - found.state}
    return dataclasses.replace(found, peak=needed, temporaries=others, refusal=reason)


def _read(path: str) -> str:
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read()
