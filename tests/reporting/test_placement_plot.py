"""Shards of arrays and the devices that store them, worked out by hand for eight devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdft_jax.errors import SdftError
from sdft_jax.reporting.placement_plot import placement, plot_placement
from sdft_jax.sharding import Sharding, make_mesh

SHARDING = Sharding(make_mesh(2, 2, 2))


def sharded(*axes, shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=SHARDING.named(*axes))


# Device 4 d + 2 f + t is at index (d, f, t) of the mesh.
@pytest.mark.parametrize(
    ("axes", "shape", "split", "devices"),
    [
        ((), (), [], range(8)),
        ((None, None), (6, 5), [], range(8)),
        (("batch", None), (8, 3), [0], [[0, 1], [2, 3], [4, 5], [6, 7]]),
        ((None, "embed", "heads"), (3, 4, 2), [1, 2], [[[0, 4], [1, 5]], [[2, 6], [3, 7]]]),
        (("vocab", "embed"), (4, 2), [0, 1], [[[0, 4], [2, 6]], [[1, 5], [3, 7]]]),
    ],
    ids=str,
)
def test_shards_and_the_devices_that_store_them(axes, shape, split, devices):
    result = placement(sharded(*axes, shape=shape))
    assert result.split == split
    np.testing.assert_array_equal(result.devices, devices)
    assert result.bytes == 4 * np.prod(shape)
    assert result.local_bytes == result.bytes * result.devices.shape[-1] / 8


def test_placement_of_an_array_matches_its_addressable_shards():
    array = jax.device_put(jnp.zeros((8, 4), jnp.bfloat16), SHARDING.named("batch", "mlp"))
    result = placement(array)
    for shard in array.addressable_shards:
        row, column = (cut.start // size for cut, size in zip(shard.index, shard.data.shape, strict=True))
        assert result.devices[row, column].tolist() == [shard.device.id]
        assert result.local_bytes == shard.data.nbytes


def test_plot_has_a_panel_per_array(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, *_, **__: figures.append(figure))
    arrays = {"head": sharded("vocab", "embed", shape=(4, 2)), "step": sharded(shape=())}
    plot_placement(arrays, tmp_path / "out.png", "caption", dimensions={"head": ("vocab", None)})
    head, step = figures[0].axes
    assert [text.get_text() for text in head.texts] == [*"04261537", "float32[4, 2]\n8 B of 32 B per device"]
    assert (head.get_title("left"), head.get_ylabel(), head.get_xlabel()) == (
        "head",
        "vocab 4",
        "dimension 1 2",
    )
    assert len(step.texts) == 9


def test_plot_is_written_and_no_arrays_raise(tmp_path):
    plot_placement({"x": sharded("batch", shape=(4,))}, tmp_path / "out.png")
    assert (tmp_path / "out.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    with pytest.raises(SdftError, match="nothing to draw"):
        plot_placement({}, tmp_path / "none.png")
