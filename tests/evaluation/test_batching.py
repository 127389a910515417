"""Batches cover all sequences in few shapes."""

import numpy as np
import pytest

from sdft_jax.evaluation.batching import FULL_WIDTH, Batch, pad, plan_batches, width_of


@pytest.mark.parametrize("parts", [1, 8])
def test_every_sequence_is_in_one_batch_that_holds_it(parts):
    rng = np.random.default_rng(0)
    sizes = [(int(n), int(rng.integers(1, 5))) for n in rng.integers(1, 3000, size=200)]
    batches = plan_batches(sizes, 16, parts)
    assert sorted(index for batch in batches for index in batch.members) == list(range(200))
    for batch in batches:
        assert len(batch.members) <= batch.rows
        assert batch.rows % parts == 0
        assert max(sizes[index][0] for index in batch.members) <= batch.width
    widths = [batch.width for batch in batches]
    assert widths == sorted(widths, reverse=True)
    assert all(batch.rows * batch.width <= 16 * FULL_WIDTH + (parts - 1) * batch.width for batch in batches)


def test_few_sequences_make_a_small_batch():
    assert plan_batches([(30,)] * 5, 64, 1) == [Batch((0, 1, 2, 3, 4), 32, 8)]
    assert plan_batches([(30,)] * 5, 64, 3) == [Batch((0, 1, 2, 3, 4), 32, 9)]
    assert plan_batches([], 64, 1) == []


def test_sequences_of_one_width_are_ordered_by_their_other_size():
    batches = plan_batches([(30, 1), (31, 9), (32, 5)], 1, 1)
    assert [batch.members for batch in batches] == [(1,), (2,), (0,)]


def test_at_most_a_third_of_a_row_is_padding():
    for length in range(32, 5000):
        assert length <= width_of(length) <= 1.5 * length


def test_padding_is_on_one_side_and_repeats_the_last_row():
    rows, batch = [(1, 2), (3,)], Batch((0, 1), 3, 3)
    left, right = (pad(rows, batch, 9, left=side) for side in (True, False))
    np.testing.assert_array_equal(left.tokens, [[9, 1, 2], [9, 9, 3], [9, 9, 3]])
    np.testing.assert_array_equal(right.tokens, [[1, 2, 9], [3, 9, 9], [3, 9, 9]])
    np.testing.assert_array_equal(right.mask, right.tokens != 9)
