"""The table of training methods: its fields agree with each other, and with the papers' descriptions."""

import typing

import pytest

from sdft_jax.config import Config, MethodName, Phase, load_config, method_named
from sdft_jax.errors import SdftError

METHODS = {name: method_named(name) for name in typing.get_args(MethodName)}
IMITATION = Phase("target", "cross_entropy")

PHASES = {
    "sdft": (Phase("student", "divergence", context=True),),
    "sft": (IMITATION,),
    "dft": (Phase("target", "confidence"),),
    "reinvoke": (IMITATION, Phase("student", "divergence", alpha=1.0)),
    "offline": (Phase("teacher", "cross_entropy", context=True),),
    "offline_kl": (Phase("teacher", "divergence", context=True, importance="log"),),
    "cpt": (IMITATION,),
    "joint": (IMITATION,),
    "oracle": (),
}
TEACHERS = {"sdft": "scheduled", "reinvoke": "initial", "offline": "initial", "offline_kl": "initial"}
TARGETS = dict.fromkeys(("sft", "dft", "reinvoke", "joint"), "demonstration") | {"cpt": "text"}
SAMPLERS = {"sdft": "student", "reinvoke": "student", "offline": "teacher", "offline_kl": "teacher"}


def test_the_table_has_every_method_name():
    assert METHODS.keys() == PHASES.keys()
    assert all(method.name == name for name, method in METHODS.items())


@pytest.mark.parametrize("name", METHODS)
def test_phases_teacher_target_and_sampler(name):
    method = METHODS[name]
    assert method.phases == PHASES[name]
    assert method.teacher == TEACHERS.get(name)
    assert method.target == TARGETS.get(name)
    assert method.sampler == SAMPLERS.get(name)
    assert method.context == (name in ("sdft", "offline", "offline_kl"))
    assert method.trains == (name != "oracle")
    assert method.general == (name == "reinvoke")
    assert method.joint == (name == "joint")


@pytest.mark.parametrize("name", METHODS)
def test_fields_agree(name):
    method = METHODS[name]
    completions = {phase.completions for phase in method.phases}
    losses = {phase.loss for phase in method.phases}
    # Targets are encoded exactly for the methods that score them.
    assert (method.target is not None) == ("target" in completions)
    # A teacher exists exactly for the methods that sample from it or measure a divergence from it.
    assert (method.teacher is not None) == ("teacher" in completions or "divergence" in losses)
    # At most one role samples, and a method with targets never samples from the teacher.
    assert len(completions - {"target"}) <= 1
    assert method.target is None or method.sampler != "teacher"
    # The width of a batch's targets selects between two phases, of which the first trains on targets.
    assert len(method.phases) <= 2
    if len(method.phases) == 2:
        assert [phase.completions == "target" for phase in method.phases] == [True, False]
    # General prompts have no demonstration: only a second phase without context trains on them.
    assert method.general == (len(method.phases) == 2)
    assert not method.general or not method.phases[-1].context


@pytest.mark.parametrize("name", METHODS)
def test_the_configuration_has_the_method_that_its_key_names(name):
    assert load_config(None, [f"train.method={name}", "data.general=unused"]).method is METHODS[name]


def test_the_default_method_is_sdft():
    assert Config().method is METHODS["sdft"]


@pytest.mark.parametrize("name", [name for name in METHODS if name not in ("reinvoke", "oracle")])
def test_one_phase_is_that_of_every_batch(name):
    method = METHODS[name]
    assert method.phase(True) is method.phase(False) is method.phases[0]


def test_the_targets_of_a_batch_select_the_phase_of_reinvoke():
    imitation, distillation = METHODS["reinvoke"].phases
    assert METHODS["reinvoke"].phase(has_target=True) is imitation
    assert METHODS["reinvoke"].phase(has_target=False) is distillation


@pytest.mark.parametrize("has_target", [False, True])
def test_the_oracle_has_no_phase(has_target):
    with pytest.raises(SdftError, match=r"train\.method=oracle does not train: there is no update for it"):
        METHODS["oracle"].phase(has_target)
