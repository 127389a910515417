"""The static part of an update: the model, the optimizer, the configuration and the stop tokens."""

from __future__ import annotations

import dataclasses

import optax

from sdft_jax.algorithm.optimizer import make_optimizer
from sdft_jax.config import Config
from sdft_jax.config.settings import TeacherConfig
from sdft_jax.errors import SdftError
from sdft_jax.models import Architecture, Model
from sdft_jax.models.architecture import check_quantizable
from sdft_jax.models.lora import NO_ADAPTER, make_lora
from sdft_jax.sharding import Sharding, mesh_axes
from sdft_jax.types import StopTokens


@dataclasses.dataclass(frozen=True)
class Learner:
    """The static part of an update; hashable, and closed over by the jitted function."""

    model: Model
    optimizer: optax.GradientTransformation
    config: Config
    stop: StopTokens
    """The tokens that end a completion, and the token that pads it."""

    @property
    def teacher(self) -> TeacherConfig | None:
        """The teacher's schedule, `frozen` if the method's teacher is the initial model; None without a
        teacher.
        """
        kind = self.config.method.teacher
        if kind == "initial":
            return dataclasses.replace(self.config.teacher, schedule="frozen")
        return self.config.teacher if kind else None

    @property
    def teacher_is_base(self) -> bool:
        """True if the teacher stays the base of new adapters, which exists without a copy."""
        adapters = self.model.architecture.lora and not self.config.lora.adapter
        return bool(adapters) and self.teacher is not None and self.teacher.schedule == "frozen"

    @property
    def freeze(self) -> tuple[str, ...]:
        """The patterns of parameters that do not train: with adapters, all others."""
        if self.model.architecture.lora:
            return (NO_ADAPTER,)
        constants = [tensor for tensor in self.model.architecture.layer_tensors if not tensor.trains]
        return (*self.config.optimizer.freeze, *(f"^layers/{tensor.name}$" for tensor in constants))

    @property
    def micro_batches(self) -> int:
        """The number of micro-batches that an update splits its batch into."""
        train = self.config.train
        return train.batch_size // (train.micro_batch or train.batch_size)


def make_learner(config: Config, model: Model, steps: int, stop: StopTokens) -> Learner:
    """Return the learner of a configuration, with an optimizer whose schedule has `steps` steps."""
    return Learner(model, make_optimizer(config.optimizer, steps), config, stop)


def make_model(config: Config, architecture: Architecture, sharding: Sharding, source: str = "") -> Model:
    """Return the model that a configuration trains; `source` is the directory of its checkpoint.

    Raises:
        SdftError: the adapters of the configuration, its load-balancing loss, or `mesh.expert` above 1 does
            not fit the architecture.
    """
    options = config.model
    if config.objective.balance and architecture.experts is None:
        raise SdftError(
            f"objective.balance={config.objective.balance}: the model has no experts: set it to 0."
        )
    if sharding.mesh.shape.get("expert", 1) > 1 and architecture.experts is None:
        raise SdftError(
            f"mesh.expert={sharding.mesh.shape['expert']}: the model has no experts: give these devices to "
            "mesh.fsdp."
        )
    check_quantizable(architecture, config.lora.quantize)
    rope_types = {kind.rope.rope_type for kind in architecture.kinds}
    if config.train.completion_buckets and "longrope" in rope_types:
        raise SdftError(
            "train.completion_buckets is not supported with longrope, whose frequencies depend on the width "
            "of the completions: set it to []."
        )
    lora = make_lora(config.lora, architecture.sizes, architecture.projections)
    architecture = dataclasses.replace(architecture, lora=lora, quantize=config.lora.quantize)
    return Model(architecture, options.compute_dtype, options.remat, sharding, source, options.attention)


def check_batch(config: Config, sharding: Sharding) -> None:
    """Raise SdftError unless the micro-batch divides the batch, and the mesh divides the micro-batch."""
    batch = config.train.batch_size
    micro = config.train.micro_batch or batch
    if batch % micro:
        raise SdftError(
            f"train.batch_size={batch} is not divisible by train.micro_batch={micro}: change one of them."
        )
    check_rows(micro, "train.micro_batch" if config.train.micro_batch else "train.batch_size", sharding)


def check_rows(rows: int, option: str, sharding: Sharding) -> None:
    """Raise SdftError if the mesh does not divide the number of rows that `option` sets."""
    parts, axes = sharding.size("batch"), mesh_axes(sharding.rules.batch)
    if rows % parts:
        raise SdftError(
            f"{option}={rows} is not divisible by the {parts} parts of mesh axes {' x '.join(axes)}: "
            f"change it, or {' or '.join(f'mesh.{axis}' for axis in axes)}."
        )
