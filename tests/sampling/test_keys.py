"""Random keys of a named generator: the same under every `jax_default_prng_impl`."""

import jax
import numpy as np
import pytest

from sdft_jax.sampling.keys import from_data, make_key, row_keys, sample_keys


@pytest.fixture(params=["threefry2x32", "rbg", "unsafe_rbg"])
def generator(request):
    """Run a test with another default generator."""
    before = jax.config.jax_default_prng_impl
    jax.config.update("jax_default_prng_impl", request.param)
    yield request.param
    jax.config.update("jax_default_prng_impl", before)


def test_the_key_of_a_seed_is_that_of_threefry_under_every_default(generator):
    key = make_key(3)
    assert key.dtype == jax.random.key(0, impl="threefry2x32").dtype
    np.testing.assert_array_equal(jax.random.key_data(key), [0, 3])
    assert from_data(jax.random.key_data(key)) == key


def test_row_keys_are_the_key_folded_with_each_position(generator):
    key = make_key(0)
    expected = [jax.random.key_data(jax.random.fold_in(key, row)) for row in range(4)]
    np.testing.assert_array_equal(jax.random.key_data(row_keys(key, 4)), expected)
    np.testing.assert_array_equal(jax.random.key_data(row_keys(jax.random.key_data(key), 4)), expected)


def test_a_key_of_the_default_generator_becomes_that_of_threefry(generator):
    for key in (jax.random.key(3), jax.random.PRNGKey(3)):
        np.testing.assert_array_equal(
            jax.random.key_data(row_keys(key, 4)), jax.random.key_data(row_keys(make_key(3), 4))
        )


def test_one_key_per_row_of_the_default_generator(generator):
    keys = row_keys(jax.random.split(jax.random.key(3), 4), 4)
    assert keys.dtype == make_key(0).dtype
    assert len(np.unique(jax.random.key_data(keys), axis=0)) == 4
    if generator != "unsafe_rbg":
        expected = jax.random.split(make_key(3), 4)
        np.testing.assert_array_equal(jax.random.key_data(keys), jax.random.key_data(expected))


def test_one_key_per_row_is_used_as_it_is(generator):
    keys = jax.random.split(make_key(0), 4)
    np.testing.assert_array_equal(jax.random.key_data(row_keys(keys, 4)), jax.random.key_data(keys))


def test_sample_keys_are_the_key_folded_with_the_row_and_the_sample(generator):
    key = make_key(0)
    keys = sample_keys(key, *map(jax.numpy.asarray, ([7, 7, 2], [0, 1, 0])))
    expected = [jax.random.fold_in(jax.random.fold_in(key, row), n) for row, n in ((7, 0), (7, 1), (2, 0))]
    np.testing.assert_array_equal(jax.random.key_data(keys), [jax.random.key_data(x) for x in expected])
    assert len(np.unique(jax.random.key_data(keys), axis=0)) == 3
