import itertools

import numpy as np

from sdft_jax.config import Config
from sdft_jax.config.settings import DataConfig, TrainConfig
from sdft_jax.data import HostSlice, make_batches
from sdft_jax.data.draws import draw, draws
from sdft_jax.data.encoding import Encoded, Shown
from sdft_jax.data.lazy_rows import LazyRows, longest

PAD = 99


def row_of(number, *demonstrations):
    """Return a row whose teacher's prompts and targets consist of the number of the demonstration."""

    def shown(demonstration):
        length = 2 + demonstration
        return Shown(np.full(length, demonstration, np.int32), np.full(length, demonstration, np.int32))

    first, *others = map(shown, demonstrations)
    return Encoded(np.full(3, number, np.int32), *first, number, others=tuple(others))


def demonstration_of(row):
    """Return the number of the demonstration of a row without others."""
    assert row.others == ()
    (number,) = set(row.teacher_prompt.tolist()) & set(row.target.tolist())
    return number


def test_each_demonstration_is_drawn_once_in_as_many_epochs():
    rows = [row_of(number, 0, 1, 2) for number in range(20)]
    orders = [[demonstration_of(draw(row, epoch, 7)) for epoch in range(6)] for row in rows]
    assert all(sorted(order[:3]) == [0, 1, 2] and order[3:] == order[:3] for order in orders)
    assert len({tuple(order) for order in orders}) == 6  # all orders occur
    assert orders == [[demonstration_of(draw(row, epoch, 7)) for epoch in range(6)] for row in rows]
    assert orders != [[demonstration_of(draw(row, epoch, 8)) for epoch in range(6)] for row in rows]


def test_row_with_one_demonstration_is_unchanged():
    row = row_of(0, 5)
    assert draw(row, 3, 0) is row
    assert [demonstration_of(one) for one in draws(row)] == [5]


def batches(rows, sorted_batches=1, **kwargs):
    config = Config(data=DataConfig(sorted_batches=sorted_batches), train=TrainConfig(batch_size=4, seed=3))
    return make_batches(rows, config, PAD, **kwargs)


def drawn(batch):
    """Return (row, demonstration in the teacher's prompt, demonstration in the target) of a batch's rows."""
    teacher, target = batch.teacher_prompt.tokens[:, -1], batch.target.tokens[:, 0]
    return list(zip(batch.row.tolist(), teacher.tolist(), target.tolist(), strict=True))


def test_passes_draw_each_demonstration_once_and_the_target_is_that_of_the_teacher():
    rows = [row_of(number, 10, 11, 12) for number in range(6)]
    for sorted_batches in (1, 3):  # a batch of 4 rows may span two passes, a window of 12 has two
        iterator = batches(rows, sorted_batches=sorted_batches)
        taken = [one for batch in itertools.islice(iterator, 9) for one in drawn(batch)]
        assert all(teacher == target for _, teacher, target in taken)
        assert sorted(taken) == sorted([one for row in rows for one in ids(row)] * 2)
    passes = [{row for row, *_ in taken[i : i + 12]} for i in (0, 12, 24)]
    assert passes == [set(range(6))] * 3


def ids(row):
    return [(row.row, demonstration_of(one), demonstration_of(one)) for one in draws(row)]


def test_rows_that_are_tokenized_on_access_draw_the_same():
    rows = [row_of(number, 10, 11, 12) for number in range(6)]
    lazy = LazyRows(6, rows.__getitem__, tuple(rows[:1]), longest(rows))
    expected, tokenized = batches(rows), batches(lazy)
    for _ in range(6):
        assert drawn(next(tokenized)) == drawn(next(expected))


def test_shape_of_all_batches_is_that_of_the_longest_demonstration():
    iterator = batches([row_of(number, 0, 18) for number in range(4)])
    for _ in range(3):
        batch = next(iterator)
        assert batch.teacher_prompt.tokens.shape == batch.target.tokens.shape == (4, 24)


def test_resumed_and_other_processes_draw_the_same():
    rows = [row_of(number, 10, 11, 12) for number in range(6)]
    running = batches(rows)
    for _ in range(2):
        next(running)
    resumed, hosts = batches(rows), [batches(rows, host=HostSlice(i, 2)) for i in range(2)]
    resumed.set_state(running.get_state())
    for host in hosts:
        host.set_state(running.get_state())
    for _ in range(4):
        expected = drawn(next(running))
        assert drawn(next(resumed)) == expected
        assert [one for host in hosts for one in drawn(next(host))] == expected
