import pytest

from sdft_jax.data.indexed import Indexed, spread


def test_items_are_made_on_access():
    made = []
    items = Indexed(5, lambda index: made.append(index) or index * 10)
    assert (len(items), made) == (5, [])
    assert (items[3], items[-1], items[1:3]) == (30, 40, [10, 20])
    assert made == [3, 4, 1, 2]
    assert list(items) == [0, 10, 20, 30, 40]
    for outside in (5, -6):
        with pytest.raises(IndexError):
            items[outside]


@pytest.mark.parametrize(
    ("size", "count", "indices"),
    [
        (0, 3, []),
        (1, 3, [0]),
        (3, 3, [0, 1, 2]),
        (7, 3, [0, 3, 6]),
        (10**12, 2, [0, 10**12 - 1]),
        (5, 1, [0]),
    ],
)
def test_indices_are_spread_from_the_first_to_the_last(size, count, indices):
    assert spread(size, count) == indices
