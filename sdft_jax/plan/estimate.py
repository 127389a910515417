"""The memory, time and communication of one update, compiled for a TPU topology without a TPU."""

from __future__ import annotations

import dataclasses
import re
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from sdft_jax.algorithm.learner import check_batch, make_model
from sdft_jax.config import Config
from sdft_jax.models import Architecture
from sdft_jax.plan.candidates import Candidate
from sdft_jax.plan.footprint import GIB, by_kind, decoded_bytes, peak_phase, update_arrays
from sdft_jax.plan.hlo import Collective, collectives, estimated_cycles
from sdft_jax.plan.program import Work, lower_update, matmul_work, planned_learner
from sdft_jax.plan.topologies import Generation

PHASES = {
    "prefill": r"/rollout/prefill",
    "decode": r"/rollout",
    "teacher": r"teacher",
    "backward": r"transpose\(jvp\(student",
    "student": r"jvp\(student",
    "divergence": r"/learn/.*shard_map",
    "optimizer": r"/optimizer",
}
"""Phase -> pattern of its scopes; the first match counts. `optimizer` includes the move of the teacher."""
KERNELS = "attention kernels"
"""The pseudo-phase of fused attention kernels, for which the compiler has no cycle estimates."""
STATE = ("frozen parameters", "parameters", "optimizer", "teacher")
"""The kinds of arrays in the training state."""

_PEAK = re.compile(r"Live ranges at \d+ \(peak\):\n(.*?)\n(?:\s*\n|  \S)", re.S)
r"""The part of the live-range report that lists the arrays at peak memory.

>>> _PEAK.search(
...     "  Live ranges at 511 (peak):\n"
...     "    copy-start.10{0}: 65536 bytes (cumulative: 851968 bytes)\n"
...     "  Stack trace breakdown for peak usage: 3 330 359 bytes\n"
... ).groups()
('    copy-start.10{0}: 65536 bytes (cumulative: 851968 bytes)',)
"""

_LIVE = re.compile(r"^\s+([\w.\-]+)(\{[\d,]*\}): (\d+) bytes", re.M)
"""An array in that list: name, index in a tuple, bytes.

>>> _LIVE.search("    copy-start.10{0}: 65536 bytes (cumulative: 851968 bytes)").groups()
('copy-start.10', '{0}', '65536')
"""

_ALLOCATION = re.compile(r"^allocation \d+: size \d+, parameter .*\n((?: value: .*\n)+)", re.M)
r"""An allocation of the buffer assignment that belongs to a parameter of the program: its values.

>>> _ALLOCATION.search(
...     "allocation 1: size 65536, parameter 15, shape |f32[256,64]| at ShapeIndex {}, maybe-live-out:\n"
...     " value: <7910 param.112 @0> (size=65536,offset=0): f32[256,64]{0,1:T(8,128)}\n"
... ).groups()
(' value: <7910 param.112 @0> (size=65536,offset=0): f32[256,64]{0,1:T(8,128)}\n',)
"""

_VALUE = re.compile(r"^ value: <\d+ ([\w.\-]+)(\{[\d,]*\})?(?: \(\w+\))? @", re.M)
r"""A value in an allocation: name, index in a tuple.

>>> _VALUE.findall(
...     " value: <7910 param.112 @0> (size=65536,offset=0): f32[256,64]{0,1:T(8,128)}\n"
...     " value: <8904 copy-start.61{0} @0> (size=65536,offset=0): f32[256,64]{0,1:T(8,128)}\n"
... )
[('param.112', ''), ('copy-start.61', '{0}')]
"""

_SCOPE = re.compile(r'^\s+(?:ROOT )?%?([\w.\-]+) = .*?op_name="([^"]*)"', re.M)
"""An operation of the program: name, scope.

>>> _SCOPE.search('  %copy.1 = f32[8] copy(%a), metadata={op_name="jit(f)/rollout/decode/copy"}').groups()
('copy.1', 'jit(f)/rollout/decode/copy')
"""

_OUT_OF_MEMORY = re.compile(r"([\d.]+)([KMGT])\)? exceeds available HBM|Used ([\d.]+)([KMGT]) of")
"""The memory that a program needs, in the compiler's two out-of-memory errors: number and unit.

>>> _OUT_OF_MEMORY.search(
...     "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries "
...     "(21.04G) exceeds available HBM (15.75G)."
... ).groups()
('21.04', 'G', None, None)
"""

_UNITS = {"K": 2.0**10, "M": 2.0**20, "G": GIB, "T": 2.0**40}


@dataclasses.dataclass(frozen=True)
class Estimate:
    """The memory, time and communication of one update on each device."""

    topology: str
    mesh: Mapping[str, int]
    rules: str
    """The name of the sharding rules."""
    batch: int
    """`train.batch_size`."""
    limit: float
    """The maximum memory of a program, in bytes."""
    parts: Mapping[str, float]
    """Kind of array -> bytes, for arrays of known shape; kinds outside the state exist in one phase only."""
    peak: float = 0.0
    """Peak memory, in bytes; a lower bound if the program was refused or not compiled."""
    temporaries: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Phase -> bytes at peak memory of the arrays that it allocated, without the state."""
    flops: float = 0.0
    """Floating-point operations of matrix products."""
    exchanges: Sequence[Collective] = ()
    """The collective operations of the program."""
    seconds: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Phase -> seconds by the compiler's cycle estimates, which exclude waiting for other chips.
    `attention kernels` is computed from the chip's peak throughput."""
    roofline: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """`rollout` and `learn` -> seconds at the chip's peak rates: a lower bound."""
    compile_seconds: float = 0.0
    refusal: str = ""
    """The reason that the program was refused or not compiled; empty if it was compiled."""
    compiled: bool = False
    """True if `peak` is the compiler's number; False if it is counted from shapes."""
    largest_batch: int | None = None
    """The largest batch size that fits, by linear extrapolation from two batch sizes; None if not known."""
    advice: Sequence[str] = ()
    """Changes of settings that reduce memory, with the memory needed after each."""

    @property
    def state(self) -> float:
        """The size of the training state, in bytes."""
        return sum(self.parts[name] for name in STATE)

    @property
    def fits(self) -> bool:
        """True if the update was compiled and its peak is within the limit."""
        return not self.refusal and self.peak <= self.limit

    @property
    def total_seconds(self) -> float:
        """The sum over all phases, in seconds."""
        return sum(self.seconds.values())

    @property
    def dominant(self) -> str:
        """The largest part of the state and of the temporaries, with its size."""
        shares = {name: self.parts[name] for name in STATE} | dict(self.temporaries)
        name = max(shares, key=lambda key: shares[key])
        return f"{name} {shares[name] / GIB:.1f} GiB"


class _Program(NamedTuple):
    """A compiled update, with the reports of the compiler."""

    text: str
    """The operations, with their scopes."""
    live_ranges: str
    """The arrays that exist at each moment."""
    buffers: str
    """The arrays in each allocation."""
    peak: float
    """Peak memory, in bytes."""
    compile_seconds: float


def estimate(config: Config, architecture: Architecture, candidate: Candidate) -> Estimate:
    """Compile the update for a candidate, and return the compiler's estimates.

    Raises:
        SdftError: the mesh does not divide the model or the batch.
    """
    sharding, generation = candidate.sharding, candidate.topology.generation
    check_batch(config, sharding)
    model = make_model(config, architecture, sharding)
    arrays = update_arrays(config, model)
    counted = Estimate(
        candidate.topology.name,
        dict(candidate.mesh),
        candidate.rules_name,
        config.train.batch_size,
        generation.hbm_gib * GIB,
        dict.fromkeys(STATE, 0.0) | by_kind(arrays),  # not every state has frozen parameters or a teacher
        peak=peak_phase(arrays)[1],
    )
    if counted.state > counted.limit:
        reason = f"not compiled: the state alone needs {counted.state / GIB:.1f} GiB per device"
        return dataclasses.replace(counted, refusal=reason)
    lowered = lower_update(planned_learner(config, model))
    try:
        program = _compile(lowered)
    except jax.errors.JaxRuntimeError as error:
        return _refused(counted, str(error))
    bytes_per_token = decoded_bytes(model) + counted.parts.get("KV cache", 0.0) / 2
    work = Work(*(flops / len(candidate.devices) for flops in matmul_work(config, architecture)))
    return dataclasses.replace(
        counted,
        peak=program.peak,
        temporaries=_temporaries(program, program.peak - counted.state),
        flops=work.rollout + work.learn,
        exchanges=tuple(collectives(program.text)),
        seconds=_seconds(program, generation, 0.0 if model.kernel == "xla" else work.attention),
        roofline=_roofline(config, bytes_per_token, generation, work),
        compile_seconds=program.compile_seconds,
        compiled=True,
    )


def phase_of(scope: str) -> str:
    """Return the phase of a scope of the program."""
    return next((name for name, pattern in PHASES.items() if re.search(pattern, scope)), "other")


def _compile(lowered: jax.stages.Lowered) -> _Program:
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as dump:
        compiled = lowered.compile(compiler_options={"xla_dump_to": dump})
        seconds = time.monotonic() - start
        live_ranges, buffers = (
            "".join(
                path.read_text(encoding="utf-8", errors="replace")
                for path in sorted(Path(dump).glob(f"*{report}.txt"))
            )
            for report in ("-live-range", "-buffer-assignment")
        )
    memory: Any = compiled.memory_analysis()
    peak = float(memory.peak_memory_in_bytes)
    return _Program(compiled.as_text() or "", live_ranges, buffers, peak, seconds)


def _seconds(program: _Program, generation: Generation, kernel_flops: float) -> dict[str, float]:
    """Return the seconds of each phase, and of the operations inside attention kernels."""
    totals: dict[str, float] = defaultdict(float)
    if kernel_flops:
        totals[KERNELS] = kernel_flops / (generation.teraflops * 1e12)
    for scope, cycles in estimated_cycles(program.text).items():
        totals[phase_of(scope)] += cycles / (generation.clock * 1e9)
    return {name: totals[name] for name in (*PHASES, KERNELS, "other") if name in totals}


def _temporaries(program: _Program, size: float) -> dict[str, float]:
    """Return the bytes at peak memory without the state, by the phase that allocated them.

    The report does not list arrays inside loops; they are the rest of `size`, the sum of all.
    """
    allocations = (_VALUE.findall(values) for values in _ALLOCATION.findall(program.buffers))
    in_state = {(name, index or "{}") for values in allocations for name, index in values}
    peak = _PEAK.search(program.live_ranges)
    scopes = dict(_SCOPE.findall(program.text))
    sizes: dict[str, float] = defaultdict(float)
    for name, index, count in _LIVE.findall(peak[0]) if peak else ():
        if (name, index) not in in_state:
            sizes[phase_of(scopes.get(name, ""))] += float(count)
    sizes["inside loops"] = max(size - sum(sizes.values()), 0.0)
    return {name: sizes[name] for name in sorted(sizes, key=lambda key: -sizes[key]) if sizes[name]}


def _roofline(config: Config, bytes_per_token: float, generation: Generation, work: Work) -> dict[str, float]:
    """Return seconds at peak rates: of matrix products or, if that takes longer, of the rollout's reading.

    Each sampled token reads `bytes_per_token`: all weights and, on average, half of the KV cache.
    """
    throughput = generation.teraflops * 1e12
    if config.method.sampler is None:
        return {"learn": (work.rollout + work.learn) / throughput}
    reading = config.sampling.max_new_tokens * bytes_per_token / (generation.bandwidth * 1e9)
    return {"rollout": max(work.rollout / throughput, reading), "learn": work.learn / throughput}


def _refused(counted: Estimate, message: str) -> Estimate:
    """Return the estimate of a program that the compiler refused: too large, or with its error message."""
    match = _OUT_OF_MEMORY.search(message)
    if "RESOURCE_EXHAUSTED" not in message or match is None:
        reason = f"refused by the compiler: {message.strip().splitlines()[0]}"
        return dataclasses.replace(counted, peak=counted.state, refusal=reason)
    number, unit = (match[1], match[2]) if match[1] else (match[3], match[4])
    needed = float(number) * _UNITS[unit]
    excess = (needed - counted.limit) / GIB
    return dataclasses.replace(
        counted,
        peak=needed,
        temporaries={"all but the state": needed - counted.state},
        refusal=f"needs {needed / GIB:.1f} GiB per device, {excess:.1f} GiB too much",
        compiled=True,
    )
