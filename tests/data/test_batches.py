import dataclasses
import itertools

import grain
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from sdft_jax.config import Config
from sdft_jax.config.settings import DataConfig, TrainConfig
from sdft_jax.data import HostSlice, find_buckets, make_batches, pad_batch
from sdft_jax.data.encoding import Encoded, Lengths
from sdft_jax.data.lazy_rows import LazyRows
from sdft_jax.errors import SdftError

PAD = 99
DATA = DataConfig()


def encoded(row, prompt=3, teacher=5, target=2):
    def tokens(length):
        return np.arange(1, length + 1, dtype=np.int32) + 1000 * row

    return Encoded(tokens(prompt), tokens(teacher), tokens(target), row)


def batches(rows, batch_size=4, data=DATA, seed=0, **kwargs):
    config = Config(data=data, train=TrainConfig(batch_size=batch_size, seed=seed))
    return make_batches(rows, config, PAD, **kwargs)


def arrays_of(batch):
    leaves = jax.tree_util.tree_leaves_with_path(batch)
    return {jax.tree_util.keystr(path): array for path, array in leaves}


def assert_same(first, second):
    expected = arrays_of(second)
    for name, array in arrays_of(first).items():
        np.testing.assert_array_equal(array, expected[name], name)


def test_padding_matches_a_hand_written_batch():
    rows = [encoded(0, 2, 3, 1), encoded(7, 1, 2, 3)]
    batch = pad_batch(rows, find_buckets(rows, DataConfig(prompt_buckets=(4,), teacher_buckets=(3, 8))), PAD)
    np.testing.assert_array_equal(batch.prompt.tokens, [[99, 99, 1, 2], [99, 99, 99, 7001]])
    np.testing.assert_array_equal(batch.prompt.mask, [[0, 0, 1, 1], [0, 0, 0, 1]])
    np.testing.assert_array_equal(batch.teacher_prompt.tokens, [[1, 2, 3], [99, 7001, 7002]])
    np.testing.assert_array_equal(batch.teacher_prompt.mask, [[1, 1, 1], [0, 1, 1]])
    np.testing.assert_array_equal(batch.target.tokens, [[1] + [99] * 7, [7001, 7002, 7003] + [99] * 5])
    np.testing.assert_array_equal(batch.target.mask.sum(1), [1, 3])
    np.testing.assert_array_equal(batch.row, [0, 7])
    np.testing.assert_array_equal(batch.weight, [1, 1])
    dtypes = [array.dtype for array in arrays_of(batch).values()]
    assert dtypes == [np.int32, bool] * 3 + [np.int32, np.float32]


def test_last_batch_is_filled_at_weight_zero():
    rows = [encoded(0), encoded(1)]
    batch = pad_batch(rows, find_buckets(rows, DATA), PAD, size=4)
    np.testing.assert_array_equal(batch.weight, [1, 1, 0, 0])
    np.testing.assert_array_equal(batch.row, [0, 1, 1, 1])


def test_absent_parts_have_width_zero():
    batch = next(batches([encoded(i, teacher=0, target=0) for i in range(4)]))
    assert batch.prompt.tokens.shape == (4, 8)
    for empty in (batch.teacher_prompt, batch.target):
        assert empty.tokens.shape == empty.mask.shape == (4, 0)


def test_longest_row_determines_the_bucket():
    rows = [encoded(0, 3), encoded(1, 8), encoded(2, 9), encoded(3, 16)]
    buckets = find_buckets(rows, DataConfig(prompt_buckets=(16, 8)))
    assert buckets.prompt == (8, 16)
    assert [pad_batch([row], buckets, PAD).prompt.tokens.shape[1] for row in rows] == [8, 8, 16, 16]
    assert find_buckets(rows[:3], DATA).prompt == (16,)
    assert find_buckets(rows[:2], DATA).prompt == (8,)


def test_row_longer_than_the_largest_bucket_raises():
    with pytest.raises(
        SdftError,
        match=r"data.teacher_buckets=\(2, 4\): row 6 has 5 tokens, more than .*data.max_teacher_prompt",
    ):
        batches([encoded(6)], data=DataConfig(teacher_buckets=(4, 2)))


def test_each_pass_contains_each_row_once_in_a_new_order():
    iterator = batches([encoded(i) for i in range(8)])
    passes = np.concatenate([next(iterator).row for _ in range(6)]).reshape(3, 8)
    assert all(sorted(order) == list(range(8)) for order in passes)
    assert len({tuple(order) for order in passes}) == 3


def test_passes_contain_each_row_if_the_batch_size_does_not_divide_them():
    iterator = batches([encoded(i) for i in range(6)])
    passes = np.concatenate([next(iterator).row for _ in range(3)]).reshape(2, 6)
    assert all(sorted(order) == list(range(6)) for order in passes)


def test_sorted_batches_contain_each_row_once_by_length_in_random_order():
    rng = np.random.default_rng()
    rows = [encoded(i, prompt=int(length)) for i, length in enumerate(rng.permutation(32) + 1)]
    data = DataConfig(sorted_batches=4, prompt_buckets=(8, 16, 24, 32))
    iterator = batches(rows, 8, data)
    widths = []
    for _ in range(6):
        one_pass = [next(iterator) for _ in range(4)]
        assert sorted(np.concatenate([batch.row for batch in one_pass])) == list(range(32))
        widths.append(tuple(batch.prompt.tokens.shape[1] for batch in one_pass))
    assert all(sorted(order) == [8, 16, 24, 32] for order in widths)
    assert len(set(widths)) > 1


def test_dataset_smaller_than_a_batch():
    rows = next(batches([encoded(5), encoded(6)])).row
    assert sorted(rows) == [5, 5, 6, 6]


def test_order_depends_only_on_the_seed():
    rows = [encoded(i) for i in range(32)]
    first, again, other = (next(batches(rows, 32, seed=seed)).row for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    next(batches(rows, seed=2**32 - 1))  # the largest that train.seed accepts


@pytest.mark.parametrize("sorted_batches", [1, 2])
def test_restored_state_continues_identically(sorted_batches):
    rows = [encoded(i, prompt=1 + i) for i in range(10)]
    data = DataConfig(prompt_buckets=(4, 8, 16), sorted_batches=sorted_batches)
    running = batches(rows, data=data)
    for _ in range(3):
        next(running)
    restored = batches(rows, data=data)
    restored.set_state(running.get_state())
    for _ in range(5):
        assert_same(next(running), next(restored))


def test_orbax_checkpoint_restores_the_iterator(tmp_path):
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
@pytest.mark.parametrize("sorted_batches", [1, 3])
def test_slices_of_all_hosts_concatenate_to_the_batch_of_one_process(count, sorted_batches):
    rows = [encoded(i, prompt=1 + i, teacher=20 - i) for i in range(10)]
    data = DataConfig(prompt_buckets=(4, 8, 16), sorted_batches=sorted_batches)
    global_batches = batches(rows, data=data)
    hosts = [batches(rows, data=data, host=HostSlice(i, count)) for i in range(count)]
    for batch, *slices in itertools.islice(zip(global_batches, *hosts, strict=True), 5):
        assert_same(concatenated(slices), batch)


def lazy(rows, known=2, limits=(12, 20, 4)):
    """Return rows that are encoded on access, and the indices that are."""
    read = []

    def encode(index):
        read.append(index)
        return rows[index]

    return LazyRows(len(rows), encode, tuple(rows[:known]), Lengths(*limits)), read


ONE_BUCKET = DataConfig(prompt_buckets=(12,), teacher_buckets=(20,))


@pytest.mark.parametrize("sorted_batches", [1, 3])
def test_batches_of_lazy_rows_are_those_of_the_same_rows(sorted_batches):
    rows = [encoded(i, prompt=1 + i, teacher=11 + i, target=4) for i in range(10)]
    data = dataclasses.replace(ONE_BUCKET, sorted_batches=sorted_batches)
    known, made = batches(rows, data=data), batches(lazy(rows)[0], data=data)
    for _ in range(8):
        assert_same(next(made), next(known))


def test_buckets_of_lazy_rows_are_the_longest_known_row_and_the_limit():
    rows = [encoded(i, prompt=1 + i, teacher=9 + i, target=0) for i in range(10)]
    rows_of_limit = lazy(rows, limits=(40, 64, 0))[0]
    buckets = find_buckets(rows_of_limit, DATA)
    assert (buckets.prompt, buckets.teacher_prompt, buckets.target) == ((8, 40), (16, 64), (0,))
    assert find_buckets(lazy(rows, limits=(8, 10, 0))[0], DATA) == find_buckets(rows[:2], DATA)
    with pytest.raises(SdftError, match=r"data.prompt_buckets=\(8, 16\): data.max_prompt is 40, more than"):
        find_buckets(rows_of_limit, DataConfig(prompt_buckets=(16, 8)))


@pytest.mark.parametrize(("data", "own"), [(ONE_BUCKET, True), (DATA, False)])
def test_process_encodes_only_its_own_rows_if_all_batches_have_one_width(data, own):
    rows = [encoded(i, prompt=1 + i, teacher=11 + i, target=4) for i in range(10)]
    lazy_rows, read = lazy(rows)
    source = batches(lazy_rows, data=data, host=HostSlice(1, 2))
    local = np.concatenate([next(source).row for _ in range(3)]).tolist()
    assert (read[:6] == local) is own
    assert set(local) <= set(read)


def test_sorted_batches_encode_each_row_once():
    lazy_rows, read = lazy([encoded(i, prompt=1 + i, teacher=11 + i) for i in range(10)])
    source = batches(lazy_rows, 2, dataclasses.replace(ONE_BUCKET, sorted_batches=5))
    for _ in range(5):
        next(source)
    assert sorted(read[:10]) == list(range(10))


def concatenated(slices):
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *slices)


def test_batch_size_not_divisible_by_the_number_of_processes_raises():
    with pytest.raises(
        SdftError,
        match=r"train.batch_size=4 is not divisible by the number of processes, 3: use a multiple of 3",
    ):
        batches([encoded(0)], host=HostSlice(0, 3))


def two_phases(steps=3, **kwargs):
    """Return rows 0 to 5, longer rows 100 to 106 without targets, and batches that switch between them."""
    first = [encoded(i, prompt=1 + i) for i in range(6)]
    second = [encoded(100 + i, prompt=9 + i, teacher=0, target=0) for i in range(7)]
    return first, second, batches(first, then=(second, steps), **kwargs)


def test_batches_switch_to_the_other_rows_after_the_first_phase():
    first, second, iterator = two_phases()
    first_batches, second_batches = batches(first), batches(second)
    for _ in range(3):
        assert_same(next(iterator), next(first_batches))
    for _ in range(5):
        batch = next(iterator)
        assert_same(batch, next(second_batches))
        assert batch.prompt.tokens.shape == (4, 16)
        assert batch.target.tokens.shape == batch.teacher_prompt.tokens.shape == (4, 0)


def test_first_phase_may_be_empty():
    assert min(next(two_phases(steps=0)[2]).row) >= 100


@pytest.mark.parametrize("batches_read", [2, 3, 6], ids=["before", "at the switch", "after"])
def test_restored_state_of_two_phases_continues_identically(batches_read):
    running, restored = two_phases()[2], two_phases()[2]
    for _ in range(batches_read):
        next(running)
    restored.set_state(running.get_state())
    for _ in range(5):
        assert_same(next(running), next(restored))


def test_all_hosts_switch_at_the_same_step():
    global_batches = two_phases()[2]
    hosts = [two_phases(host=HostSlice(i, 2))[2] for i in range(2)]
    for batch, *slices in itertools.islice(zip(global_batches, *hosts, strict=True), 5):
        assert_same(concatenated(slices), batch)
