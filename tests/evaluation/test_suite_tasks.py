"""Tasks of a suite, and the mistakes in naming and writing them."""

import pytest
import yaml

from suites import write_task, write_tasks

pytest.importorskip("lm_eval")

from lm_eval.tasks import TaskManager

from sdft_jax.errors import SdftError
from sdft_jax.evaluation import suite_tasks
from sdft_jax.evaluation.suite_tasks import CODE_VARIABLE, PRIOR, LoadedTasks

CHOICE = dict(
    output_type="multiple_choice", doc_to_text="{{text}}", doc_to_choice="choices", doc_to_target="label"
)
GENERATE = dict(output_type="generate_until", doc_to_text="{{text}}", doc_to_target="x")


@pytest.fixture
def directory(tmp_path):
    return write_tasks(tmp_path / "tasks")


def load(directory, *names, unsafe=False):
    return LoadedTasks(names, str(directory), unsafe).loaded


def test_tasks_of_a_directory_are_loaded(directory):
    assert list(load(directory, "choice", "ppl")["tasks"]) == ["choice", "ppl"]
    assert list(load(directory, str(directory / "gen.yaml"))["tasks"]) == ["gen"]


def test_a_group_has_its_tasks(directory, monkeypatch):
    monkeypatch.setattr(
        suite_tasks, "_has_all", lambda names, include: True
    )  # listing lm-eval's takes seconds
    (directory / "both.yaml").write_text(yaml.safe_dump({"group": "both", "task": ["choice", "gen"]}))
    loaded = load(directory, "both")
    assert sorted(loaded["tasks"]) == ["choice", "gen"]
    assert list(loaded["groups"]) == ["both"]
    assert sorted(load(directory, "[cp]*")["tasks"]) == ["choice", "ppl"]
    with pytest.raises(SdftError, match=r"--suite: Duplicate task 'choice'.*: name one of them only"):
        load(directory, "both", "choice")
    with pytest.raises(SdftError, match=r"--suite nosuch: lm-eval has no task, group or tag of that name"):
        load(directory, "nosuch")


def test_lm_eval_has_the_tasks_of_the_suite():
    assert set(PRIOR) <= set(TaskManager().all_tasks)


def test_missing_data_is_named(directory):
    write_task(directory, "lost", directory / "lost.jsonl", **CHOICE)
    with pytest.raises(SdftError, match=r"the data of task lost cannot be read .*lost.jsonl"):
        load(directory, "lost")
    write_task(directory, "remote", "", **CHOICE, dataset_path="nobody/nothing", dataset_kwargs={})
    with pytest.raises(SdftError, match=r"the data of task remote cannot be .*nobody/nothing.*check the net"):
        load(directory, "remote")


def test_mistakes_in_a_yaml_file_are_named(directory):
    file = str(directory / "rows.jsonl")
    write_task(directory, "key", file, **CHOICE, nonsense=1)
    with pytest.raises(SdftError, match=r"task key cannot be loaded \(TypeError: .*nonsense"):
        load(directory, "key")
    write_task(directory, "beams", file, **GENERATE, generation_kwargs={"num_beams": 4, "until": ["x"]})
    with pytest.raises(SdftError, match=r"beams: generation_kwargs has num_beams=4"):
        load(directory, "beams")
    (directory / "broken.yaml").write_text("task: [broken")
    with pytest.raises(SdftError, match=r"broken"):
        load(directory, str(directory / "broken.yaml"))
    with pytest.raises(SdftError, match=r"absent.yaml: the file does not exist"):
        load(directory, "absent.yaml")
    with pytest.raises(SdftError, match=r"--include .*absent: the directory does not exist"):
        load(directory / "absent", "choice")


def test_code_of_the_model_needs_consent(directory, monkeypatch):
    write_task(directory, "runs_code", str(directory / "rows.jsonl"), **GENERATE, unsafe_code=True)
    with pytest.raises(SdftError, match=r"runs_code: the task runs code.*leave it out, give --suite gen\."):
        load(directory, "gen", "runs_code")
    monkeypatch.delenv(CODE_VARIABLE, raising=False)
    with pytest.raises(SdftError, match=r"runs_code: the task runs code"):
        load(directory, "runs_code", unsafe=True)
    monkeypatch.setenv(CODE_VARIABLE, "1")
    assert list(load(directory, "runs_code", unsafe=True)["tasks"]) == ["runs_code"]
