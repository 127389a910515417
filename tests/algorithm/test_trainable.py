"""Trainable and frozen parameters: every leaf on one side, and back."""

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
    trainable, found = split(PARAMS, freeze)
    assert found == frozen
    assert join(trainable, found) == PARAMS
    assert join(found, trainable) == PARAMS


def test_sides_share_nothing():
    trainable, frozen = split(PARAMS, ["mlp"])
    assert trainable == {"embed": 1, "layers": {"q": 2}, "norm": 5}
    assert frozen == {"layers": {"mlp_up": 3, "mlp_down": 4}}


def test_branches_without_leaves_disappear():
    assert split(PARAMS, ["layers"])[0] == {"embed": 1, "norm": 5}


def test_join_changes_neither():
    trainable, frozen = split(PARAMS, ["mlp"])
    join(trainable, frozen)["layers"]["q"] = 9
    assert trainable == {"embed": 1, "layers": {"q": 2}, "norm": 5}


def test_select_takes_the_keys_of_the_other():
    names = {"embed": "a", "layers": {"q": "b", "mlp_up": "c", "mlp_down": "d"}, "norm": "e"}
    trainable, frozen = split(PARAMS, ["mlp", "embed"])
    assert select(names, trainable) == {"layers": {"q": "b"}, "norm": "e"}
    assert select(names, frozen) == {"embed": "a", "layers": {"mlp_up": "c", "mlp_down": "d"}}


@pytest.mark.parametrize(
    ("freeze", "message"),
    [
        (["("], r"optimizer\.freeze=\['\('\]: not a regular expression"),
        (["embed", "attn"], r"'attn' matches no parameter; they are embed, layers/q, .*norm"),
        ([""], r"leaves nothing to train"),
        (["layers", "embed", "norm"], r"leaves nothing to train"),
    ],
)
def test_mistakes(freeze, message):
    with pytest.raises(SdftError, match=message):
        split(PARAMS, freeze)
