"""`sdft train`: its table, plot and paths, and the run of the baseline."""

import json
import os
import shutil
from pathlib import Path

import pytest

from fixtures.chat import HERMES, TOOLS, TRACE
from fixtures.chat import build_tokenizer as build_bytes
from runs import config_of, content_of, read, write_config, write_model
from sdft_jax import cli
from sdft_jax.commands.train import baseline_config, interval_sentences, plot_points, result_rows
from sdft_jax.training import loop
from sdft_jax.training.loop import Run
from sdft_jax.training.run_directory import RunDirectory

pytestmark = pytest.mark.usefixtures("shared_compilations")


def test_summary_has_rows_before_training_for_the_teacher_and_for_each_method(finished):
    summary = json.loads((finished / "summary.json").read_text())
    assert [row["model"] for row in summary["rows"]] == [
        "before",
        "before, with the demonstration",
        "after SDFT",
        "after SFT",
    ]
    before, teacher, sdft, sft = summary["rows"]
    assert (before["steps"], before["KL to base"]) == (0, 0.0)
    assert teacher.keys() == {"model", "new skill"}
    last = read(finished / "evaluations.jsonl")[-1]
    assert sdft == {
        "model": "after SDFT",
        "steps": 6,
        "new skill": last["accuracy"],
        "old skills": last["prior"],
        "KL to base": last["kl_to_base"],
    }
    assert sft["steps"] == 6
    assert "jax" in summary["hardware"]


def test_accuracies_after_training_have_intervals():
    rows = [
        {"model": "before", "new skill": 0.5},
        {"model": "after SDFT", "new skill": 0.8, "old skills": None},
    ]
    assert interval_sentences(rows, {"new skill": 10, "old skills": 4}) == [
        "95 % intervals (Wilson): after SDFT new skill 0.490 to 0.943 (10 rows)."
    ]
    assert interval_sentences(rows[:1], {"new skill": 10}) == []


def test_baseline_is_a_separate_run_on_the_same_data(finished):
    rows = read(finished / "sft" / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, 7))
    assert "cross_entropy" in rows[0]
    assert (finished / "sft" / "model" / "model.safetensors").is_file()


def test_plot_is_written(finished):
    assert (finished / "run.png").read_bytes().startswith(b"\x89PNG")


def write_rows(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_traces_and_several_demonstrations_are_trained_on(tmp_path, capsys):
    """Two steps of four rows: the three turns of a trace, and a question with two demonstrations."""
    write_model(tmp_path / "model", tokenizer=build_bytes(HERMES))
    trace = {"messages": TRACE, "tools": TOOLS}
    train = write_rows(tmp_path / "train.jsonl", trace, {"prompt": "Two?", "shown": ["2", "It is 2."]})
    held_out = [{**TRACE[0], "content": "Is it warm in Bonn?"}, *TRACE[1:]]
    test = write_rows(tmp_path / "test.jsonl", {**trace, "messages": held_out})
    config = write_config(
        tmp_path / "config.yaml",
        tmp_path / "model",
        tmp_path / "run",
        f"data.path={train}",
        "data.messages=messages",
        "data.demonstrations=shown",
        "data.max_prompt=1024",
        "data.max_teacher_prompt=1024",
        f"eval.path={test}",
        "eval.prior=null",
        "eval.task=toolcalls",
        "eval.batch_size=4",
        "train.steps=2",
        "train.batch_size=4",
        "train.eval_every=0",
        "train.rollouts_every=1",
        "train.rollouts_rows=4",
    )
    same = write_rows(tmp_path / "same.jsonl", trace)
    assert cli.main(["train", config, f"eval.path={same}"]) == 2
    assert "3 of its 3 prompts are also training prompts" in capsys.readouterr().err
    assert cli.main(["train", config]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    end = r"<|im_end|>\n<|im_start|>assistant\n'"
    assert printed.count("prompt ends in '") == 2
    assert f"Is it warm in Oslo?{end} the teacher's prompt ends in '" in printed
    assert rf"including the thinking process.\n{end} settings that differ" in printed
    counts = (
        "5 demonstrations, of 4 prompts (one is drawn in each epoch), 3 of them assistant turns of 1 traces"
    )
    assert counts in printed
    assert [row["step"] for row in read(tmp_path / "run" / "metrics.jsonl")] == [1, 2]
    for step in (1, 2):
        prompts = {row["prompt"] for row in read(tmp_path / "run" / "rollouts" / f"{step:06d}.jsonl")}
        assert len(prompts) == 4
        assert sum("<tool_response>" in prompt for prompt in prompts) == 2
    evaluations = read(tmp_path / "run" / "evaluations.jsonl")
    assert [row["step"] for row in evaluations] == [0, 2]
    assert "teacher" in evaluations[0]


def test_baseline_differs_in_method_and_output_only(tmp_path):
    config = config_of("mini", tmp_path, "baseline=true", "optimizer.learning_rate=0.5")
    baseline = baseline_config(config)
    assert (baseline.train.method, baseline.output, baseline.baseline) == ("sft", f"{tmp_path}/sft", False)
    assert (baseline.optimizer, baseline.data, baseline.train.steps) == (
        config.optimizer,
        config.data,
        config.train.steps,
    )


def test_baseline_may_have_its_own_learning_rate(tmp_path):
    rates = ("optimizer.learning_rate=0.5", "baseline_learning_rate=0.25")
    assert baseline_config(config_of("mini", tmp_path, *rates)).optimizer.learning_rate == 0.25


def test_rows_and_points_without_prior_skills():
    evaluations = ({"step": 0, "accuracy": 0.1, "teacher": 0.9}, {"step": 5, "accuracy": 0.5})
    run = Run(None, None, 5, evaluations, None)
    assert plot_points({"sdft": run}) == [
        {"method": "SDFT", "step": 0, "new": 0.1},
        {"method": "base", "step": 0, "new": 0.1},
        {"method": "teacher", "step": 0, "new": 0.9},
        {"method": "SDFT", "step": 5, "new": 0.5},
    ]
    before, _, after = result_rows({"sdft": run})
    nothing = {"old skills": None, "KL to base": None}
    assert before == {"model": "before", "steps": 0, "new skill": 0.1, **nothing}
    assert after == {"model": "after SDFT", "steps": 5, "new skill": 0.5, **nothing}


def test_no_rows_without_evaluations():
    assert result_rows({"sdft": Run(None, None, 5, (), None)}) == []


# --- files of a run that are replaced -------------------------------------------------------------------


def put(path: Path, kind: str) -> None:
    """Replace a file or directory by something else."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    match kind:
        case "directory":
            path.mkdir()
            (path / "other").write_text("not of the run")
        case "dangling link":
            path.symlink_to("/nonexistent/somewhere")
        case "loop of links":
            path.symlink_to(path.name)
        case "named pipe":
            os.mkfifo(path)
        case "garbage":
            path.write_bytes(bytes(range(256)))
        case "empty":
            path.write_bytes(b"")
        case "missing":
            pass


KINDS = ("directory", "dangling link", "loop of links", "named pipe", "garbage", "empty", "missing")
REMADE = (
    "config.yaml",
    "metrics.jsonl",
    "evaluations.jsonl",
    "run.png",
    "summary.json",
    "rollouts/000006.jsonl",
    "rollouts/000006.txt",
    "model/config.json",
    "model/model.safetensors",
)
"""Files that a resumed run writes again."""
SURVIVED = ("rollouts", "tensorboard", "profile", "rollouts/000006.jsonl", "run.png")
"""What a run goes on without, if it is named."""


@pytest.fixture(scope="module")
def stopped(finished, tmp_path_factory):
    """A copy of the finished run without its last checkpoint and its results: it resumes from step 4."""
    output = shutil.copytree(finished, tmp_path_factory.mktemp("stopped") / "run")
    for name in ("checkpoints/6", "model", "sft"):
        shutil.rmtree(output / name)
    return output


@pytest.fixture
def resume(finished, stopped, tmp_path, capfd):
    """A function that resumes a copy of the stopped run, and returns (exit code, stdout, stderr)."""
    output = shutil.copytree(stopped, tmp_path / "run")
    command = ["train", str(finished.parent / "config.yaml"), f"output={output}", "baseline=false"]

    def resume(*more):
        code = cli.main([*command, *more])
        return code, *capfd.readouterr()

    resume.output = output
    return resume


def model_of(output: Path) -> bytes:
    return (output / "model" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("kind", KINDS[1:])
def test_replaced_files_are_written_again(finished, resume, kind):
    output = resume.output
    for name in REMADE:
        (output / name).parent.mkdir(exist_ok=True)
        put(output / name, kind)
    code, text, errors = resume()
    assert code == 0, errors
    assert "resuming from step 4" in text
    for name in REMADE:
        assert (output / name).is_file()
        assert not (output / name).is_symlink()
    assert model_of(output) == model_of(finished)
    assert content_of(output / "rollouts") == content_of(finished / "rollouts")
    assert (output / "run.png").read_bytes().startswith(b"\x89PNG")
    assert [row["model"] for row in json.loads((output / "summary.json").read_text())["rows"]] == [
        "after SDFT"
    ]
    assert read(output / "metrics.jsonl") == read(finished / "metrics.jsonl")[4:]
    assert read(output / "evaluations.jsonl") == read(finished / "evaluations.jsonl")[2:]
    assert RunDirectory(str(output)).load_config().train.steps == 6
    if kind == "garbage":
        assert "metrics.jsonl: 1 damaged rows were dropped." in text
    elif kind != "empty":  # as a log is before its first row
        assert "metrics.jsonl holds no rows of the steps before 5: it begins again." in text


@pytest.mark.parametrize("kind", KINDS[:-1])
def test_what_cannot_be_written_is_named_and_costs_no_model(finished, resume, kind):
    names = SURVIVED[3:] if kind == "directory" else SURVIVED[:3]
    for name in names:
        put(resume.output / name, kind)
    code, text, errors = resume("report.tensorboard=true", "profile.steps=5:5")
    assert (code, errors) == (0, "")
    lines = [line for line in text.splitlines() if line.endswith("the run continues without it.")]
    assert len(lines) == len(names), text
    assert all(any(str(resume.output / name) in line for line in lines) for name in names)
    assert model_of(resume.output) == model_of(finished)
    assert len(read(resume.output / "metrics.jsonl")) == 6


REFUSED = {
    "directory": ("config.yaml", ".lock", "metrics.jsonl", "evaluations.jsonl", "summary.json", "model"),
    "dangling link": (".lock", "checkpoints", "model"),
    "loop of links": (".lock", "checkpoints", "model"),
    "named pipe": (".lock", "checkpoints", "model"),
    "garbage": ("checkpoints", "model"),
    "empty": ("checkpoints", "model"),
}
"""What a run needs: it is named in one sentence."""


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in REFUSED for name in REFUSED[kind]])
def test_what_the_run_needs_is_named(finished, resume, kind, name):
    put(resume.output / name, kind)
    code, _, errors = resume()
    assert code == 2
    assert errors.startswith("sdft: ")
    assert errors.count("\n") == 1
    assert str(resume.output / name) in errors
    if name in ("summary.json", "model"):  # after the last checkpoint
        put(resume.output / name, "missing")
        assert resume()[0] == 0
        assert model_of(resume.output) == model_of(finished)


@pytest.fixture
def meanwhile(monkeypatch):
    """A function that sets the work to do between two steps of a run."""

    def set_work(work):
        next_batch = loop._next_batch

        def work_and_next_batch(run):
            work()
            return next_batch(run)

        monkeypatch.setattr(loop, "_next_batch", work_and_next_batch)

    return set_work


def test_files_that_are_removed_meanwhile_are_written_again(finished, resume, meanwhile):
    output = resume.output
    meanwhile(lambda: [put(output / name, "missing") for name in (*REMADE[:3], "rollouts", "tensorboard")])
    code, _, errors = resume("report.tensorboard=true")
    assert (code, errors) == (0, "")
    for name in ("metrics.jsonl", "evaluations.jsonl"):
        assert read(output / name) == read(finished / name)
    assert sorted(path.name for path in (output / "rollouts").iterdir()) == ["000006.jsonl", "000006.txt"]
    assert len(list((output / "tensorboard").iterdir())) == 1
    assert model_of(output) == model_of(finished)


@pytest.mark.parametrize("kind", ["directory", "named pipe"])
def test_logs_that_are_replaced_meanwhile_cost_no_model(finished, resume, meanwhile, kind):
    output, names = resume.output, ("metrics.jsonl", "rollouts", "tensorboard")
    meanwhile(lambda: [put(output / name, kind) for name in names])
    code, text, errors = resume("report.tensorboard=true")
    assert (code, errors) == (0, "")
    assert text.count("metrics.jsonl cannot be written") == (kind == "directory")
    assert model_of(output) == model_of(finished)
