"""Trainable and frozen parameters: split by patterns, and joined again."""

import pytest

from sdft_jax.algorithm.trainable import join, select, split
from sdft_jax.errors import SdftError

PARAMS = {"embed": 1, "layers": {"q": 2, "mlp_up": 3, "mlp_down": 4}, "norm": 5}


@pytest.mark.parametrize(
    ("freeze", "frozen"),
    [
        ([], {}),
        (["embed"], {"embed": 1}),
        (["layers/mlp"], {"layers": {"mlp_up": 3, "mlp_down": 4}}),
        (["layers/"], {"layers": {"q": 2, "mlp_up": 3, "mlp_down": 4}}),
        (["^norm$", "q"], {"layers": {"q": 2}, "norm": 5}),
        (["up|down"], {"layers": {"mlp_up": 3, "mlp_down": 4}}),
    ],
    ids=str,
)
def test_split_and_join(freeze, frozen):
    trainable, others = split(PARAMS, freeze)
    assert others == frozen
    assert join(trainable, others) == PARAMS
    assert join(others, trainable) == PARAMS


def test_trees_are_disjoint():
    trainable, frozen = split(PARAMS, ["mlp"])
    assert trainable == {"embed": 1, "layers": {"q": 2}, "norm": 5}
    assert frozen == {"layers": {"mlp_up": 3, "mlp_down": 4}}


def test_branches_without_leaves_are_removed():
    assert split(PARAMS, ["layers"])[0] == {"embed": 1, "norm": 5}


def test_join_does_not_modify_its_arguments():
    trainable, frozen = split(PARAMS, ["mlp"])
    join(trainable, frozen)["layers"]["q"] = 9
    assert trainable == {"embed": 1, "layers": {"q": 2}, "norm": 5}


def test_select_returns_the_keys_of_the_other_tree():
    names = {"embed": "a", "layers": {"q": "b", "mlp_up": "c", "mlp_down": "d"}, "norm": "e"}
    trainable, frozen = split(PARAMS, ["mlp", "embed"])
    assert select(names, trainable) == {"layers": {"q": "b"}, "norm": "e"}
    assert select(names, frozen) == {"embed": "a", "layers": {"mlp_up": "c", "mlp_down": "d"}}


@pytest.mark.parametrize(
    ("freeze", "message"),
    [
        (["("], r"optimizer\.freeze=\['\('\] is not a list of regular expressions \(.*\): fix the pattern"),
        (["embed", "attn"], r"'attn' matches no parameter: use one of embed, layers/q, .*norm"),
        ([""], r"freezes every parameter: remove a pattern"),
        (["layers", "embed", "norm"], r"freezes every parameter: remove a pattern"),
    ],
)
def test_wrong_patterns_are_refused(freeze, message):
    with pytest.raises(SdftError, match=message):
        split(PARAMS, freeze)
