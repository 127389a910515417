"""Local checkpoints of a process, and the choice among those of all; the loss of a host: test_processes."""

import itertools
import shutil
import time
from pathlib import Path

import jax
import pytest
from states import EIGHT, TARGETS, abstract, assert_identical, batches, placed, train_state

from sdft_jax.training import local_tier
from sdft_jax.training.local_tier import choose, open_local_tier

RING = [[(4, owner, "own"), (4, (owner - 1) % 4, "copy")] for owner in range(4)]
"""The files of four processes."""


def without(*lost):
    return [[] if process in lost else files for process, files in enumerate(RING)]


def test_complete_checkpoint_is_read_by_its_owners():
    assert choose(RING) == (4, {"own": {0: 0, 1: 1, 2: 2, 3: 3}, "copy": {}})


@pytest.mark.parametrize("lost", range(4))
def test_lost_shards_are_read_from_the_next_process(lost):
    step, sources = choose(without(lost))
    assert step == 4
    assert sources["own"] == {process: process for process in range(4) if process != lost}
    assert sources["copy"] == {(lost + 1) % 4: lost}


def test_loss_of_two_neighbors_is_not_survived():
    assert choose(without(0, 2)) is not None
    assert choose(without(0, 1)) is None
    assert choose([[], [], [], []]) is None


def test_newest_complete_step_is_chosen():
    """Process 2 ended before it wrote step 6, and process 3 before it copied its shards."""
    newer = [[(6, owner, "own")] for owner in (0, 1, 3)]
    held = [old + new for old, new in zip(RING, [newer[0], newer[1], [], newer[2]], strict=True)]
    assert choose(held)[0] == 4
    held[3].append((6, 2, "copy"))
    assert choose(held)[0] == 6


def test_hosts_may_come_back_in_another_order_or_share_a_disk():
    order = (2, 0, 3, 1)
    step, sources = choose([RING[old] for old in order])
    assert (step, sources["own"]) == (4, dict(enumerate(order)))
    everything = list(itertools.chain(*RING))
    assert choose([everything] * 4)[1] == {"own": {0: 0, 1: 1, 2: 2, 3: 3}, "copy": {}}


@pytest.fixture
def shown():
    return []


@pytest.fixture
def tier(tmp_path, shown):
    with open_local_tier(str(tmp_path / "local"), 5, "run", True, shown.append) as opened:
        yield opened


def save(tier, *steps):
    data = batches()
    for step in steps:
        next(data)
        state = placed(train_state(step), EIGHT)
        local_tier.save(tier, step, state, data, {"step": step, "run": "this"})
    local_tier._finish_writing(tier)


def restore(tier, after=0, like=EIGHT, data=None):
    target = abstract(placed(train_state(), like))
    return local_tier.restore(tier, target, data or batches(), after)


def files_of(tier) -> list[Path]:
    return sorted(path for path in tier.directory.rglob("*") if path.is_file())


def test_newest_state_and_position_are_restored(tier):
    save(tier, 5, 10, 15)
    assert [file.name for file in files_of(tier)] == ["10.0.own", "15.0.own"]
    data, uninterrupted = batches(), batches()
    restored = restore(tier, data=data)
    assert (restored.step, restored.meta["run"]) == (15, "this")
    assert_identical(restored.state, train_state(15))
    for _ in range(3):
        next(uninterrupted)
    assert next(data).tolist() == next(uninterrupted).tolist()
    assert restore(tier, after=15) is None


def test_each_shard_is_written_once(tier):
    """Eight devices hold eight replicas of a scale, and one file has it once."""
    save(tier, 5)
    (file,) = files_of(tier)
    state = train_state(5)
    with file.open("rb") as content:
        content.readline()
        assert len(content.read()) == sum(leaf.nbytes for leaf in jax.tree.leaves(state))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:-1] + bytes([data[-1] ^ 1]), "is not what was saved"),
        (lambda data: data[:-1], "bytes of shards instead of"),
        (lambda data: data[:100], "or its record is damaged"),
        (lambda data: data.replace(b"layout", b"layuot"), "or its record is damaged"),
        (lambda _: b"", "cannot be read"),
    ],
)
def test_damaged_file_is_not_used(tier, shown, damage, message):
    save(tier, 5)
    (file,) = files_of(tier)
    file.write_bytes(damage(file.read_bytes()))
    assert restore(tier) is None
    assert message in shown[0]
    assert shown[0].startswith(f"the local checkpoint of step 5 in {tier.directory} is not used: ")


def test_older_checkpoint_is_used_in_place_of_a_damaged_one(tier, shown):
    save(tier, 5, 10)
    new, old = files_of(tier)  # 10 and 5
    new.write_bytes(new.read_bytes()[:-1])
    restored = restore(tier)
    assert (restored.step, len(shown)) == (5, 1)
    assert_identical(restored.state, train_state(5))
    assert old.exists()


def test_state_may_be_donated_as_soon_as_save_returns(tier):
    overwrite = jax.jit(lambda s: jax.tree.map(lambda x: x * 0, s), donate_argnums=0)
    state = placed(train_state(5), EIGHT)
    tier.writer.submit(time.sleep, 0.5)  # the write begins afterwards
    local_tier.save(tier, 5, state, batches(), {"step": 5})
    jax.block_until_ready(overwrite(state))
    local_tier._finish_writing(tier)
    assert_identical(restore(tier).state, train_state(5))


def test_remains_of_a_kill_are_ignored_and_deleted(tier, tmp_path):
    save(tier, 5)
    (file,) = files_of(tier)
    remains = file.with_name(".10.0.own.01234567.tmp")
    remains.write_bytes(file.read_bytes()[:-1])
    assert restore(tier).step == 5
    save(tier, 10)
    with open_local_tier(str(tmp_path / "local"), 5, "run", True, print):
        assert not remains.exists()


def test_files_of_other_attempts_are_deleted(tier):
    """The process had number 3 before, and an attempt that was not resumed has come further."""
    save(tier, 5, 10, 25)
    shutil.copytree(tier.directory / "0", tier.directory / "3")
    save(tier, 15)
    assert [file.relative_to(tier.directory).as_posix() for file in files_of(tier)] == [
        *("0/10.0.own", "0/15.0.own"),
        *("3/10.0.own", "3/25.0.own"),
    ]
    save(tier, 20, 30)
    assert [file.relative_to(tier.directory).as_posix() for file in files_of(tier)] == [
        *("0/20.0.own", "0/30.0.own"),
        "3/25.0.own",
    ]
    save(tier, 35)
    assert [file.name for file in files_of(tier)] == ["30.0.own", "35.0.own"]


@pytest.mark.parametrize("target", [name for name in TARGETS if name != "same"])
def test_another_mesh_uses_the_checkpoints_in_the_output(tier, shown, target):
    save(tier, 5)
    assert restore(tier, like=TARGETS[target]) is None
    assert "the mesh or the number of processes has changed" in shown[0]


def test_failure_to_write_is_reported_and_ends_nothing(tier, shown):
    tier.directory.parent.mkdir(exist_ok=True)
    tier.directory.write_text("a file in place of the directory")
    save(tier, 5)
    (message,) = shown
    assert message.startswith(f"the local checkpoint in {tier.directory} cannot be written (")


def test_new_run_deletes_what_an_earlier_one_left(tier, tmp_path):
    save(tier, 5)
    with open_local_tier(str(tmp_path / "local"), 5, "another", False, print):
        assert files_of(tier)
    with open_local_tier(str(tmp_path / "local"), 5, "run", False, print):
        assert not tier.directory.exists()
    with open_local_tier(None, 5, "run", False, print) as none:
        assert none is None
