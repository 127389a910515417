import dataclasses
import itertools

import grain
import numpy as np
import orbax.checkpoint as ocp
import pytest

from sdft_jax.config.settings import DataConfig
from sdft_jax.data import find_buckets, make_batches, pad_batch
from sdft_jax.data.encoding import Encoded
from sdft_jax.errors import SdftError

PAD = 99
CONFIG = DataConfig()


def encoded(row, prompt=3, teacher=5, demonstration=2):
    def tokens(length):
        return np.arange(1, length + 1, dtype=np.int32) + 1000 * row

    return Encoded(tokens(prompt), tokens(teacher), tokens(demonstration), row)


def batches(rows, batch_size=4, config=CONFIG, seed=0, **kwargs):
    return make_batches(rows, config, batch_size=batch_size, seed=seed, pad_id=PAD, **kwargs)


def assert_same(first, second):
    for field in dataclasses.fields(first):
        np.testing.assert_array_equal(getattr(first, field.name), getattr(second, field.name), field.name)


def test_padding_by_hand():
    rows = [encoded(0, 2, 3, 1), encoded(7, 1, 2, 3)]
    batch = pad_batch(rows, find_buckets(rows, DataConfig(prompt_buckets=(4,), teacher_buckets=(3, 8))), PAD)
    np.testing.assert_array_equal(batch.prompt, [[99, 99, 1, 2], [99, 99, 99, 7001]])
    np.testing.assert_array_equal(batch.prompt_mask, [[0, 0, 1, 1], [0, 0, 0, 1]])
    np.testing.assert_array_equal(batch.teacher_prompt, [[1, 2, 3], [99, 7001, 7002]])
    np.testing.assert_array_equal(batch.teacher_mask, [[1, 1, 1], [0, 1, 1]])
    np.testing.assert_array_equal(batch.demonstration, [[1] + [99] * 7, [7001, 7002, 7003] + [99] * 5])
    np.testing.assert_array_equal(batch.demonstration_mask.sum(1), [1, 3])
    np.testing.assert_array_equal(batch.row, [0, 7])
    np.testing.assert_array_equal(batch.weight, [1, 1])
    dtypes = [getattr(batch, field.name).dtype for field in dataclasses.fields(batch)]
    assert dtypes == [np.int32, bool] * 3 + [np.int32, np.float32]


def test_last_batch_is_filled_at_weight_zero():
    rows = [encoded(0), encoded(1)]
    batch = pad_batch(rows, find_buckets(rows, CONFIG), PAD, size=4)
    np.testing.assert_array_equal(batch.weight, [1, 1, 0, 0])
    np.testing.assert_array_equal(batch.row, [0, 1, 1, 1])


def test_absent_parts_have_width_zero():
    batch = next(batches([encoded(i, teacher=0, demonstration=0) for i in range(4)]))
    assert batch.prompt.shape == (4, 8)
    assert batch.teacher_prompt.shape == batch.demonstration.shape == batch.demonstration_mask.shape == (4, 0)


def test_buckets_are_chosen_by_the_longest_row():
    rows = [encoded(0, 3), encoded(1, 8), encoded(2, 9), encoded(3, 16)]
    config = DataConfig(prompt_buckets=(16, 8))
    buckets = find_buckets(rows, config)
    assert buckets.prompt == (8, 16)
    assert [pad_batch([row], buckets, PAD).prompt.shape[1] for row in rows] == [8, 8, 16, 16]
    assert find_buckets(rows[:3], CONFIG).prompt == (16,)
    assert find_buckets(rows[:2], CONFIG).prompt == (8,)


def test_row_longer_than_every_bucket_is_refused():
    with pytest.raises(
        SdftError, match=r"data.teacher_buckets=\(2, 4\): row 6 has 5 tokens.*data.max_teacher_prompt"
    ):
        batches([encoded(6)], config=DataConfig(teacher_buckets=(4, 2)))


def test_each_pass_has_every_row_once_in_a_new_order():
    iterator = batches([encoded(i) for i in range(8)])
    rows = np.concatenate([next(iterator).row for _ in range(6)]).reshape(3, 8)
    assert all(sorted(one) == list(range(8)) for one in rows)
    assert len({tuple(one) for one in rows}) == 3


def test_passes_cover_every_row_when_the_batch_does_not_divide_them():
    iterator = batches([encoded(i) for i in range(6)])
    rows = np.concatenate([next(iterator).row for _ in range(3)]).reshape(2, 6)
    assert all(sorted(one) == list(range(6)) for one in rows)


def test_sorted_batches_hold_rows_of_like_length_in_random_order_and_leave_none_out():
    rng = np.random.default_rng()
    rows = [encoded(i, prompt=int(length)) for i, length in enumerate(rng.permutation(32) + 1)]
    config = DataConfig(sorted_batches=4, prompt_buckets=(8, 16, 24, 32))
    iterator = batches(rows, 8, config=config)
    passes = [[next(iterator) for _ in range(4)] for _ in range(6)]
    for one in passes:
        assert sorted(np.concatenate([batch.row for batch in one])) == list(range(32))
        assert sorted(batch.prompt.shape[1] for batch in one) == [8, 16, 24, 32]
    assert len({tuple(batch.prompt.shape[1] for batch in one) for one in passes}) > 1


def test_dataset_smaller_than_a_batch():
    rows = next(batches([encoded(5), encoded(6)])).row
    assert sorted(rows) == [5, 5, 6, 6]


def test_order_depends_on_the_seed_alone():
    rows = [encoded(i) for i in range(32)]
    first, again, other = (next(batches(rows, 32, seed=seed)).row for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    next(batches(rows, seed=-1))


@pytest.mark.parametrize("together", [1, 2])
def test_restored_state_continues_identically(together):
    rows = [encoded(i, prompt=1 + i) for i in range(10)]
    config = DataConfig(prompt_buckets=(4, 8, 16), sorted_batches=together)
    running = batches(rows, config=config)
    for _ in range(3):
        next(running)
    restored = batches(rows, config=config)
    restored.set_state(running.get_state())
    for _ in range(5):
        assert_same(next(running), next(restored))


def test_checkpoint_by_orbax(tmp_path):
    rows = [encoded(i) for i in range(10)]
    running, restored = batches(rows), batches(rows)
    for _ in range(3):
        next(running)
    with ocp.CheckpointManager(tmp_path) as manager:
        manager.save(3, args=ocp.args.Composite(data=grain.checkpoint.CheckpointSave(running)))
        manager.wait_until_finished()
        manager.restore(3, args=ocp.args.Composite(data=grain.checkpoint.CheckpointRestore(restored)))
    assert_same(next(running), next(restored))


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("together", [1, 3])
def test_hosts_add_up_to_the_single_process(count, together):
    rows = [encoded(i, prompt=1 + i, teacher=20 - i) for i in range(10)]
    config = DataConfig(prompt_buckets=(4, 8, 16), sorted_batches=together)
    whole = batches(rows, config=config)
    hosts = [batches(rows, config=config, process_index=i, process_count=count) for i in range(count)]
    for batch, *parts in itertools.islice(zip(whole, *hosts, strict=True), 5):
        for field in dataclasses.fields(batch):
            joined = np.concatenate([getattr(part, field.name) for part in parts])
            np.testing.assert_array_equal(joined, getattr(batch, field.name))


def test_batch_that_hosts_do_not_divide_is_refused():
    with pytest.raises(SdftError, match=r"train.batch_size=4 does not divide among 3 processes"):
        batches([encoded(0)], process_count=3)


def two_phases(switch=3, **kwargs):
    """Rows 0 to 5 with demonstrations, then rows 100 to 106, which are longer and have none."""
    first = [encoded(i, prompt=1 + i) for i in range(6)]
    second = [encoded(100 + i, prompt=9 + i, teacher=0, demonstration=0) for i in range(7)]
    return first, second, batches(first, then=(second, switch), **kwargs)


def test_other_rows_come_after_so_many_batches():
    first, second, iterator = two_phases()
    alone, later = batches(first), batches(second)
    for _ in range(3):
        assert_same(next(iterator), next(alone))
    for _ in range(5):
        batch = next(iterator)
        assert_same(batch, next(later))
        assert batch.prompt.shape == (4, 16)
        assert batch.demonstration.shape == batch.teacher_prompt.shape == (4, 0)


def test_a_phase_may_have_no_batch():
    assert min(next(two_phases(switch=0)[2]).row) >= 100


@pytest.mark.parametrize("passed", [2, 3, 6], ids=["before", "at the switch", "after"])
def test_two_phases_restore_exactly(passed):
    running, restored = two_phases()[2], two_phases()[2]
    for _ in range(passed):
        next(running)
    restored.set_state(running.get_state())
    for _ in range(5):
        assert_same(next(running), next(restored))


def test_hosts_share_the_switch():
    whole = two_phases()[2]
    hosts = [two_phases(process_index=i, process_count=2)[2] for i in range(2)]
    for batch, *parts in itertools.islice(zip(whole, *hosts, strict=True), 5):
        np.testing.assert_array_equal(np.concatenate([part.row for part in parts]), batch.row)
        np.testing.assert_array_equal(np.concatenate([part.prompt for part in parts]), batch.prompt)
