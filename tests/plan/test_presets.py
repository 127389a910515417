"""The tables at the top of the configurations for one chip: what can be counted without the compiler."""

import re
from pathlib import Path

import pytest

from sdft_jax.algorithm.learner import make_model
from sdft_jax.config import load_config
from sdft_jax.plan.estimate import STATE
from sdft_jax.plan.footprint import GIB, by_kind, update_arrays
from sdft_jax.plan.prices import LIST_PRICES, PAGE
from sdft_jax.plan.program import model_shape
from sdft_jax.plan.topologies import parse_topology
from sdft_jax.sharding import Sharding, make_mesh

CONFIGS = Path(__file__).parents[2] / "configs"
FILES = [CONFIGS / "qwen2.5-0.5b.yaml", *sorted(CONFIGS.glob("*lora.yaml"))]
ROW = re.compile(r"^#   (v\w+-\d+) +(data|fsdp)=(\d+) +([\d. ]+)$", re.M)
COUNTED = ("frozen parameters", "parameters", "optimizer", "teacher", "KV cache", "logits")


def table_rows():
    """Yield (file, slice, mesh axis, size, numbers) of each row of each table."""
    for path in FILES:
        for name, axis, size, numbers in ROW.findall(path.read_text(encoding="utf-8")):
            values = [float(number) for number in numbers.split()]
            yield pytest.param(path, name, axis, int(size), values, id=f"{path.stem}-{name}-{axis}")


ROWS = list(table_rows())


@pytest.mark.parametrize(("path", "name", "axis", "size", "values"), ROWS)
def test_row_has_the_sizes_counted_from_shapes_and_the_list_price(path, name, axis, size, values):
    config, topology = load_config(path), parse_topology(name)
    names = COUNTED if config.lora.rank else COUNTED[1:]
    peak, available, *counted, estimated, at_peak, dollars = values
    assert (topology.size, topology.generation.hbm_gib) == (size, available)
    sharding = Sharding(make_mesh(**{axis: size}), config.sharding)
    kinds = by_kind(update_arrays(config, make_model(config, model_shape(config), sharding)))
    assert counted == pytest.approx([kinds[kind] / GIB for kind in names], abs=0.006)
    state = sum(kinds[kind] for kind in names if kind in STATE) / GIB
    assert state < peak < available
    assert at_peak < estimated
    price = LIST_PRICES[topology.generation.name]
    assert dollars == pytest.approx(topology.chips * price.dollars)
    assert re.search(
        rf"{PAGE}:[^$]*{topology.generation.name} in\s[#\s]*{price.region} in\s[#\s]*{price.date}",
        path.read_text(encoding="utf-8"),
    )


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_slices_of_the_overview_are_those_of_the_table(path):
    overview = (CONFIGS / "README.md").read_text(encoding="utf-8")
    (line,) = re.findall(rf"^\| \[{re.escape(path.name)}\].*$", overview, re.M)
    slices = {row.values[1] for row in ROWS if row.values[0] == path}
    assert set(re.findall(r"v\w+-\d+", line.rpartition("|")[0])) <= slices
    assert "v5e-1" in slices
