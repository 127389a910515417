"""`sdft evaluate --suite`: the results of local tasks, compared with those of lm-eval's own `hf` model."""

import importlib.util
import json
import re

import numpy as np
import pytest

from runs import write_model
from sdft_jax import cli
from sdft_jax.commands.suite import table_rows
from suites import write_task, write_tasks

lm_eval = pytest.importorskip("lm_eval")
pytestmark = pytest.mark.usefixtures("shared_compilations")

GENERATE = dict(output_type="generate_until", doc_to_text="{{text}}", doc_to_target="x")
SETTINGS = ("model.compute_dtype=float32", "eval.batch_size=8")


@pytest.fixture(autouse=True)
def _no_description_of_the_machine(monkeypatch):
    """lm-eval starts a dozen programs to describe the machine, if PyTorch is installed."""
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    return write_tasks(tmp_path_factory.mktemp("suite"))


def suite(directory, tasks, *words, names="choice,gen,ppl"):
    command = ["evaluate", str(directory), "--suite", names, "--include", str(tasks), *words, *SETTINGS]
    return cli.main(command)


def results_of(output):
    """The newest results, and the samples of each task."""
    file = max(output.rglob("results_*.json"))
    samples = {
        task: [
            json.loads(line) for line in max(output.rglob(f"samples_{task}_*.jsonl")).open(encoding="utf-8")
        ]
        for task in ("choice", "gen", "ppl")
    }
    return json.loads(file.read_text(encoding="utf-8")), samples


def _numbers(responses):
    """The log-likelihoods, and 1 for greedy, of responses in memory or in a file, where all are texts."""
    leaves = re.findall(r"-?\d+\.\d+|True|False", str(responses))
    return [float({"True": 1, "False": 0}.get(leaf, leaf)) for leaf in leaves]


@pytest.mark.parametrize("template", [False, True])
def test_results_are_those_of_hf(tiny_directory, tasks, tmp_path, capsys, template):
    pytest.importorskip("accelerate")
    from lm_eval.models.huggingface import HFLM

    options = ["--num-fewshot", "1", "--chat-template"] if template else []
    assert suite(tiny_directory, tasks, "--out", str(tmp_path), *options) == 0
    table = capsys.readouterr().out
    results, samples = results_of(tmp_path)
    expected = lm_eval.simple_evaluate(
        HFLM(pretrained=str(tiny_directory), device="cpu", dtype="float32"),
        tasks=["choice", "gen", "ppl"],
        num_fewshot=1 if template else None,
        apply_chat_template=template,
        task_manager=lm_eval.tasks.TaskManager(include_path=str(tasks), include_defaults=False),
        bootstrap_iters=0,
    )
    for task, metrics in expected["results"].items():
        for name, value in metrics.items():
            if isinstance(value, float):
                assert results["results"][task][name] == pytest.approx(value, rel=1e-5), (task, name)
        for ours, theirs in zip(samples[task], expected["samples"][task], strict=True):
            assert ours["prompt_hash"] == theirs["prompt_hash"]
            if task == "gen":
                assert ours["resps"] == theirs["resps"]
            else:
                found, wanted = (_numbers(each["resps"]) for each in (ours, theirs))
                np.testing.assert_allclose(found, wanted, atol=1e-4, rtol=1e-6)
    assert results["config"]["model"] == "sdft_jax"
    assert results["n-shot"]["choice"] == int(template)
    assert str(tmp_path) in table
    assert "word_perplexity" in table
    rows = table[table.index("standard error") :].splitlines()[1:5]
    assert [row.split()[0] for row in rows] == ["choice", "choice", "gen", "ppl"]


def test_an_interrupted_suite_continues(tiny_directory, tasks, tmp_path, capsys):
    assert suite(tiny_directory, tasks, "--out", str(tmp_path), "--limit", "3") == 0
    first = results_of(tmp_path)
    (log,) = tmp_path.glob("answers-*.jsonl")
    lines = log.read_text().splitlines()
    changed = json.loads(lines[0])
    changed["answer"][0] = -1234.5
    log.write_text("\n".join([json.dumps(changed), *lines[1:4]]) + '\n{"requ')
    assert suite(tiny_directory, tasks, "--out", str(tmp_path), "--limit", "3") == 0
    second = results_of(tmp_path)
    assert "-1234.5" in json.dumps(second[1]["choice"]), "a known answer is not computed again"
    assert second[1]["gen"] == first[1]["gen"]
    assert len(log.read_text().splitlines()) == len(lines)
    other = tmp_path / "other"
    write_model(other, tied=True)
    assert suite(other, tasks, "--out", str(tmp_path), "--limit", "3") == 0
    assert len(list(tmp_path.glob("answers-*.jsonl"))) == 2, "another model has its own answers"
    (other / "generation_config.json").write_text('{"eos_token_id": [5]}')
    assert suite(other, tasks, "--out", str(tmp_path), "--limit", "3", names="gen") == 0
    assert len(list(tmp_path.glob("answers-*.jsonl"))) == 3, "and so has one with another EOS"


def test_mistakes_of_the_command(tiny_directory, tasks, tmp_path, capsys, monkeypatch):
    def error_of(*words):
        assert cli.main(["evaluate", str(tiny_directory), *words]) == 2
        return capsys.readouterr().err

    assert "needs a FILE of rows, or --suite TASK" in error_of("eval.batch_size=8")
    assert "--num-fewshot is an option of --suite TASK: remove it" in error_of("x", "--num-fewshot", "2")
    assert "--task is an option of evaluating a FILE" in error_of("--suite", "choice", "--task", "mini")
    assert "absent.jsonl does not exist" in error_of("--task", "mini", "absent.jsonl", "eval.limit=4")
    assert "not the file rows.jsonl: remove one" in error_of("rows.jsonl", "--suite", "choice")
    (tmp_path / "file").touch()
    assert "file cannot be written" in error_of("--suite", "choice", "--out", str(tmp_path / "file"))
    write_task(tmp_path, "long", tasks / "rows.jsonl", **GENERATE)
    long = error_of("--suite", "long", "--include", str(tmp_path), *SETTINGS)
    assert "task long generates up to 256 tokens, and the maximum length of the model with the" in long
    assert "--num-fewshot -1: give" in error_of("--suite", "choice", "--num-fewshot", "-1")
    assert "humaneval: the task runs code" in error_of("--suite", "prior")
    assert "give --suite hellaswag,mmlu,truthfulqa_mc1" in error_of("--suite", "prior")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "which is not installed: pip install 'sdft_jax[suite]'" in error_of("--suite", "prior")


def test_the_table_has_groups_instead_of_their_parts():
    results = {
        "results": {
            "one": {"alias": "one", "sample_len": 4, "acc,none": 0.5, "acc_stderr,none": 0.2},
            "two": {"sample_len": 6, "exact,strict": 1.0, "exact_stderr,strict": "N/A"},
            "part": {"sample_len": 4, "acc,none": 0.5, "acc_stderr,none": 0.2},
            "all": {"sample_len": 10, "acc,none": 0.5, "acc_stderr,none": 0.2},
            "plain": {"alias": "plain"},
        },
        "groups": {"part": {"acc,none": 0.5}, "all": {"acc,none": 0.5}},
        "group_subtasks": {"part": ["one"], "all": ["part", "two"], "plain": ["two"]},
        "n-shot": {"two": 3},
    }
    rows = [tuple(row.values()) for row in table_rows(results)]
    assert rows == [
        ("two", 6, 3, "exact (strict)", 1.0, None),
        ("all", 10, None, "acc", 0.5, 0.2),
        ("part", 4, None, "acc", 0.5, 0.2),
    ]
