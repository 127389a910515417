"""Small training states, their meshes, and an endless iterator over data."""

import dataclasses

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax

from sdft_jax.sharding import Rules, Sharding, make_mesh, tree_shardings
from sdft_jax.types import TrainState

AXES = {"w": ("embed", "mlp"), "layers": {"q": (None, "embed", "heads"), "scale": (None, None)}}
SHAPES = {
    "w": jax.ShapeDtypeStruct((32, 16), jnp.float32),
    "layers": {
        "q": jax.ShapeDtypeStruct((3, 16, 8), jnp.bfloat16),
        "scale": jax.ShapeDtypeStruct((3, 16), jnp.float32),
    },
}
OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-2))


def shapes() -> TrainState:
    return TrainState(
        step=jax.ShapeDtypeStruct((), jnp.int32),
        params=SHAPES,
        frozen={"embed": jax.ShapeDtypeStruct((8, 16), jnp.float32)},
        teacher=jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, jnp.float32), SHAPES),
        opt_state=jax.eval_shape(OPTIMIZER.init, SHAPES),
        key=jax.ShapeDtypeStruct((2,), jnp.uint32),
    )


def train_state(seed: int = 1) -> TrainState:
    """Return a state of different numbers, which also differ from those of another seed; compiles nothing."""
    numbers = np.random.default_rng(seed)
    return jax.tree.map(lambda s: jnp.asarray((9 * numbers.random(s.shape)).astype(s.dtype)), shapes())


def with_noise(seed: int, size: int) -> TrainState:
    """Return a state with `size` bytes that do not compress."""
    noise = np.random.default_rng(0).integers(0, 2**32, size // 4, dtype=np.uint32)
    return dataclasses.replace(train_state(seed), frozen={"noise": jnp.asarray(noise)})


def placed(state: TrainState, sharding: Sharding) -> TrainState:
    """Return the state with parameters, teacher and optimizer moments placed by the sharding rules."""
    by_name = tree_shardings(sharding, AXES, SHAPES)
    flat = {jax.tree_util.keystr(path): s for path, s in jax.tree_util.tree_leaves_with_path(by_name)}

    def place(path, leaf):
        name = jax.tree_util.keystr(path)
        return jax.device_put(
            leaf, next((s for k, s in flat.items() if name.endswith(k)), sharding.replicated)
        )

    return jax.tree_util.tree_map_with_path(place, state)


def abstract(state: TrainState) -> TrainState:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def assert_identical(left: TrainState, right: TrainState) -> None:
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for one, two in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert one.dtype == two.dtype
        assert np.asarray(one).tobytes() == np.asarray(two).tobytes()


def batches():
    return iter(grain.MapDataset.source(range(100)).shuffle(seed=1).repeat().batch(4).to_iter_dataset())


EIGHT = Sharding(make_mesh(data=1, fsdp=4, tensor=2))
TARGETS = {
    "same": EIGHT,
    "one device": Sharding(make_mesh(devices=jax.devices()[:1])),
    "2x2x2": Sharding(make_mesh(data=2, fsdp=2, tensor=2)),
    "other rules": Sharding(make_mesh(fsdp=2, tensor=4), Rules(embed=None, mlp=("fsdp", "tensor"))),
}
