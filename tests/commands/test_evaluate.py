"""`sdft evaluate`: its table, its file of answers, and run directories."""

import dataclasses
import json
import os
import shutil

import pytest

from endpoints import Response, serve
from fixtures.chat import HERMES, TOOLS, TRACE, build_tokenizer
from runs import content_of, write_model
from sdft_jax import cli
from sdft_jax.commands import evaluate
from sdft_jax.evaluation import completions
from sdft_jax.evaluation.answer_log import read_answers
from sdft_jax.evaluation.scorers import TASKS
from sdft_jax.training.lock import locked

pytestmark = pytest.mark.usefixtures("shared_compilations")

ROWS = ("mini:blax:heldout", "--task", "mini")


def test_every_answer_is_written(tiny_directory, tmp_path, capsys):
    out = tmp_path / "answers.jsonl"
    settings = ("eval.limit=6", "mesh.fsdp=1", "eval.batch_size=4", "sampling.max_new_tokens=4")
    command = ["evaluate", str(tiny_directory), *ROWS, *settings]
    assert cli.main([*command, "--json", str(out)]) == 0
    table = capsys.readouterr().out
    assert "student" in table
    assert "teacher" in table
    assert "0/6" in table
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["row"] for row in rows] == list(range(6))
    assert all(row.keys() == {"row", "answer", "student", "teacher"} for row in rows)
    assert rows[0]["student"].keys() == {"completion", "correct"}
    assert cli.main(["evaluate", str(tiny_directory), str(out), *settings, "--json", str(out)]) == 2
    assert f"would replace the rows that are read from {out}: give another file." in capsys.readouterr().err
    assert cli.main([*command, "--json", "/dev/full"]) == 2
    full = capsys.readouterr()
    assert full.out.splitlines()[-3:] == table.splitlines()[-3:], "the table is printed before"
    assert full.err.startswith(
        "sdft: /dev/full cannot be written (No space left on device): fix this, or give"
    )
    assert cli.main([*command, "--json", str(tmp_path / "none" / "x.jsonl")]) == 2
    assert "x.jsonl cannot be written, since its directory does not exist" in capsys.readouterr().err


def test_an_adapter_answers_as_the_model_that_it_is_merged_into(
    tiny_directory, adapter_directories, tmp_path
):
    adapter, merged = adapter_directories
    settings = ("eval.limit=6", "mesh.fsdp=1", "eval.batch_size=4", "sampling.max_new_tokens=4")
    exact = "model.compute_dtype=float32"
    for model, more in ((tiny_directory, ["lora.rank=4", f"lora.adapter={adapter}"]), (merged, [])):
        out = tmp_path / f"{len(more)}.jsonl"
        assert cli.main(["evaluate", str(model), *ROWS, *settings, exact, *more, "--json", str(out)]) == 0
    assert (tmp_path / "2.jsonl").read_text() == (tmp_path / "0.jsonl").read_text()


def test_model_may_be_a_run_directory_and_a_file_of_a_task_does_not_replace_the_rows(
    finished, tmp_path, capsys
):
    task = tmp_path / "task.yaml"
    task.write_text("eval: {path: none.jsonl, teacher: false}\n")
    settings = (
        str(task),
        "--limit",
        "4",
        "eval.batch_size=4",
        "sampling.max_new_tokens=4",
        "mesh.fsdp=2",
    )
    assert cli.main(["evaluate", str(finished), *ROWS, *settings]) == 0
    table = capsys.readouterr().out
    assert "0/4" in table
    assert "teacher" not in table


def test_batch_size_must_be_divisible_by_the_mesh(tiny_directory, capsys):
    assert cli.main(["evaluate", str(tiny_directory), *ROWS, "eval.batch_size=6", "mesh.fsdp=4"]) == 2
    assert "eval.batch_size=6 is not divisible by the 4 parts of mesh axes" in capsys.readouterr().err


def test_faults_of_the_scorer_are_counted_and_name_the_row(tiny_directory, tmp_path, capsys, monkeypatch):
    def score(completion, example):
        return 1 / 0 if example.row == 1 else True

    task = dataclasses.replace(TASKS["mini"], score=score, detail=lambda text, row: f"row {row.row // 2}")
    monkeypatch.setitem(TASKS, "mini", task)
    out = tmp_path / "answers.jsonl"
    settings = ("eval.limit=3", "mesh.fsdp=1", "eval.batch_size=4", "sampling.max_new_tokens=4")
    assert cli.main(["evaluate", str(tiny_directory), *ROWS, *settings, "--json", str(out)]) == 0
    table = capsys.readouterr().out
    assert "2/3" in table
    assert "scorer faults" in table
    assert (
        table.count("the scorer of eval.task=mini failed on 2 answers, which count as wrong: mini:blax:h")
        == 1
    )
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    for role in ("student", "teacher"):
        assert [row[role]["correct"] for row in rows] == [True, False, True]
        assert [row[role]["decided_by"] for row in rows] == ["row 0", "scorer fault", "row 1"]
        assert f"{role}: what decided" in table
        faults = [row[role].get("fault") for row in rows]
        assert faults == [None, "ZeroDivisionError: division by zero", None]


SETTINGS = ("mesh.fsdp=1", "sampling.max_new_tokens=4", "eval.batch_size=4", "eval.samples=2", "eval.limit=6")


@pytest.fixture
def command(tiny_directory, tmp_path):
    """Return a function that returns the arguments of an evaluation in a directory."""
    return lambda out, *more: [
        *("evaluate", str(tiny_directory), *ROWS, *SETTINGS, *more, "--out", str(tmp_path / out))
    ]


def printed(capsys):
    """Return the lines that were printed, without progress, which only slow work prints."""
    return [line for line in capsys.readouterr().out.splitlines() if " elapsed" not in line]


@pytest.fixture
def batches(monkeypatch):
    """Return a list that grows with each batch that a model answers."""
    counted = []
    generate = completions.generate

    def counting(*arguments):
        counted.append(arguments)
        return generate(*arguments)

    monkeypatch.setattr(completions, "generate", counting)
    return counted


def test_an_interrupted_evaluation_resumes_with_the_next_batch(
    command, tmp_path, monkeypatch, batches, capsys
):
    assert cli.main(command("whole")) == 0
    table = printed(capsys)
    assert len(batches) == 2 + 2 + 3, "batches of student, teacher and samples"
    counting, on_disk = completions.generate, []

    def interrupted(*arguments):
        on_disk.append(len((tmp_path / "parts" / "answers.jsonl").read_text().splitlines()))
        if len(on_disk) == 4:
            raise KeyboardInterrupt
        return counting(*arguments)

    monkeypatch.setattr(completions, "generate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cli.main(command("parts"))
    assert on_disk == [0, 4, 6, 10], "a kill loses one batch at most"
    with (tmp_path / "parts" / "answers.jsonl").open("a") as file:
        file.write('{"role": "student", "row": 5, "sam')
    monkeypatch.setattr(completions, "generate", counting)
    batches.clear()
    capsys.readouterr()
    assert cli.main(command("parts", "eval.batch_size=4")) == 0
    assert len(batches) == 1 + 3
    assert [line.replace("parts", "whole") for line in printed(capsys)] == table
    whole, parts = (content_of(tmp_path / name) for name in ("whole", "parts"))
    assert whole == parts
    rows = [json.loads(line) for line in whole["answers.jsonl"].splitlines()]
    assert len(rows) == 6 + 6 + 12
    summary = json.loads(whole["summary.json"])
    assert summary["roles"].keys() == {"student", "teacher", "sampled"}
    assert [row["k"] for row in summary["pass_at_k"]] == [1, 2]


def test_a_finished_evaluation_reads_no_model(command, tmp_path, monkeypatch, capsys):
    assert cli.main(command("out", "eval.samples=0", "eval.limit=3")) == 0
    table = printed(capsys)
    before = content_of(tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "load_speaker", pytest.fail)
        assert cli.main(command("out", "eval.samples=0", "eval.limit=3")) == 0
        assert printed(capsys) == table
        assert content_of(tmp_path / "out") == before
        # another scorer needs the answers only
        assert cli.main(command("out", "eval.samples=0", "eval.limit=3", "--task", "contains")) == 0
        assert "scored by contains" in capsys.readouterr().out
        (row, *_) = read_answers(tmp_path / "out")
        assert (row["scorer"], row["completion"]) == (
            "contains",
            json.loads(before["answers.jsonl"].splitlines()[0])["completion"],
        )


def test_an_evaluation_grows(command, tmp_path, batches, capsys):
    """More rows, and then another role, are added to the answers that are there."""
    assert cli.main(command("out", "eval.samples=0", "eval.limit=4", "eval.teacher=false")) == 0
    assert len(batches) == 1
    assert cli.main(command("out", "eval.samples=0", "eval.limit=6", "eval.teacher=false")) == 0
    assert len(batches) == 2
    assert "/6" in capsys.readouterr().out
    assert cli.main(command("out", "eval.samples=1")) == 0
    assert len(batches) == 2 + 2 + 2
    assert len(read_answers(tmp_path / "out")) == 18


def test_turns_of_traces_are_resumed_and_compared_by_row_and_turn(tmp_path, monkeypatch, batches, capsys):
    write_model(tmp_path / "model", tokenizer=build_tokenizer(HERMES))
    other = [TRACE[0], TRACE[1], {"role": "tool", "content": "5"}, {"role": "assistant", "content": "No."}]
    rows = [{"messages": messages, "tools": TOOLS} for messages in (TRACE, other)]
    (tmp_path / "traces.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = ("data.messages=messages", "eval.teacher=false", "data.max_prompt=768", "mesh.fsdp=1")
    settings += ("sampling.max_new_tokens=2", "eval.batch_size=4", "eval.samples=2")
    model, file = str(tmp_path / "model"), str(tmp_path / "traces.jsonl")
    words = ["evaluate", model, file, "--task", "toolcalls", *settings, "--out"]
    assert cli.main([*words, str(tmp_path / "whole")]) == 0
    table = printed(capsys)
    counting = completions.generate

    def interrupted(*arguments):
        if len(batches) == 2 + 3 + 1:
            raise KeyboardInterrupt
        return counting(*arguments)

    monkeypatch.setattr(completions, "generate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cli.main([*words, str(tmp_path / "parts")])
    monkeypatch.setattr(completions, "generate", counting)
    batches.clear()
    capsys.readouterr()
    assert cli.main([*words, str(tmp_path / "parts")]) == 0
    assert len(batches) == 1 + 3, "the student's first batch was kept"
    assert [line.replace("parts", "whole") for line in printed(capsys)] == table
    whole, parts = (content_of(tmp_path / name) for name in ("whole", "parts"))
    assert whole == parts
    turns = [(0, 1), (0, 3), (0, 6), (1, 1), (1, 3)]
    answers = read_answers(tmp_path / "whole")
    assert [(x["row"], x["turn"]) for x in answers if x["role"] == "student"] == turns
    changed = [x | {"correct": not x["correct"]} if (x["row"], x["turn"]) == (1, 3) else x for x in answers]
    edited = tmp_path / "edited.jsonl"
    edited.write_text("".join(json.dumps(record) + "\n" for record in changed))
    assert cli.main(["compare", str(tmp_path / "whole"), str(edited), "--out", str(tmp_path / "both")]) == 0
    numbers = json.loads((tmp_path / "both" / "comparison.json").read_text())
    groups = numbers["changed_rows"]
    assert (numbers["rows"], groups["lost"] + groups["gained"]) == (5, [{"row": 1, "turn": 3}])
    assert "row 1, message 3" in (tmp_path / "both" / "comparison.html").read_text()
    edited.write_text("".join(json.dumps(record) + "\n" for record in changed if record["turn"] != 6))
    assert cli.main(["compare", str(tmp_path / "whole"), str(edited)]) == 2
    assert "edited.jsonl has no answer to row 0, message 6, and" in capsys.readouterr().err


def test_faults_are_scored_again_by_the_same_command(command, tmp_path, monkeypatch, capsys):
    words = command("out", "eval.samples=0", "eval.limit=3")
    with monkeypatch.context() as patch:

        def score(completion, example):
            return 1 / 0 if example.row == 1 else True

        patch.setitem(TASKS, "mini", dataclasses.replace(TASKS["mini"], score=score))
        assert cli.main(words) == 0
    assert capsys.readouterr().out.count("The same command scores them again.") == 1
    assert [x["correct"] for x in read_answers(tmp_path / "out")] == [True, False, True] * 2
    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "load_speaker", pytest.fail)
        patch.setitem(TASKS, "mini", dataclasses.replace(TASKS["mini"], score=lambda *_: True))
        assert cli.main(words) == 0
    assert "scorer faults" not in capsys.readouterr().out
    assert [(x["correct"], x["fault"]) for x in read_answers(tmp_path / "out")] == [(True, None)] * 6


def test_another_evaluation_is_refused(command, tmp_path, half_directory, capsys):
    directory = shutil.copytree(command("out")[1], tmp_path / "model")
    template = directory / "chat_template.jinja"
    template.write_text(template.read_text() + "{% if style is defined %}{% endif %}")

    def of_model(*words):
        name, _, *others = command(*words)
        return [name, str(directory), *others]

    small = ("eval.samples=0", "eval.limit=3")
    assert cli.main(of_model("out", *small)) == 0
    before = content_of(tmp_path / "out")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "thesis.tex").touch()
    other, scaled = of_model("out", *small), of_model("out", *small)
    other[1], scaled[1] = str(half_directory), str(tmp_path / "scaled")
    shutil.copytree(of_model("out")[1], scaled[1])
    model = json.loads((tmp_path / "scaled" / "config.json").read_text())
    (tmp_path / "scaled" / "config.json").write_text(json.dumps(model | {"rope_theta": 500.0}))
    for words, message in (
        (
            other,
            "out has answers of another evaluation, since the weights of the model changed: give another",
        ),
        (scaled, "since config.json of the model changed: give another"),
        (
            of_model("out", *small, "sampling.max_new_tokens=5"),
            "since eval.max_new_tokens changed (4 before, 5",
        ),
        (of_model("out", *small, "data.template=$question $demonstration"), "the teacher's template changed"),
        (
            of_model("out", *small, "data.teacher_template_kwargs.style=1"),
            "since data.teacher_template_kwargs changed ({} before, {'style': 1} now)",
        ),
        (of_model("out", *small, "data.thoughts=remove"), "since data.thoughts changed ('keep' before,"),
        (of_model("out", *small, f"eval.base={half_directory}"), "since the model of eval.base changed"),
        (of_model("out", "eval.samples=0", "eval.limit=2"), "has an answer to row 2, which is not among the"),
        (
            of_model("foreign", *small),
            "foreign holds files that do not belong to an evaluation, such as thesis",
        ),
        (of_model("foreign/thesis.tex", *small), "thesis.tex is a file: give a directory, or write one file"),
        (
            of_model("out", *small, "eval.samples=2", "eval.temperature=0"),
            "2 samples of a row at temperature 0",
        ),
    ):
        assert cli.main(words) == 2
        assert message in capsys.readouterr().err
    other = of_model("out", *small)[:-1]
    assert cli.main([*other, "gs://bucket/out"]) == 2
    assert "--out gs://bucket/out is in a bucket, where answers cannot be appended" in capsys.readouterr().err
    with locked(str(tmp_path / "out"), False):
        assert cli.main(of_model("out", *small)) == 2
    assert f"--out {tmp_path / 'out'} is in use by process {os.getpid()} on" in capsys.readouterr().err
    assert content_of(tmp_path / "out") | {".lock": b""} == before | {".lock": b""}


def test_distances_from_a_base(command, half_directory, capsys):
    assert cli.main(command("out", "eval.samples=0", "eval.limit=3", f"eval.base={half_directory}")) == 0
    assert "KL to base" in capsys.readouterr().out
    assert cli.main(command("other", "eval.samples=0", "eval.base=mini")) == 2
    assert "eval.base=mini has other parameters than the model" in capsys.readouterr().err


def test_a_run_of_another_step_is_another_model(finished, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    words = [
        "evaluate",
        str(run),
        *ROWS,
        *SETTINGS,
        "eval.samples=0",
        "eval.limit=3",
        "--out",
        str(tmp_path / "o"),
    ]
    assert cli.main(words) == 0
    assert cli.main(words) == 0
    newest = max(int(path.name) for path in (run / "checkpoints").iterdir() if path.name.isdigit())
    shutil.rmtree(run / "checkpoints" / str(newest))
    capsys.readouterr()
    assert cli.main(words) == 2
    assert "since the weights of the model changed" in capsys.readouterr().err


def test_judge_that_goes_down_leaves_a_resumable_evaluation(tiny_directory, tmp_path, capsys, monkeypatch):
    """The judge grades two answers and is then down; the same command later asks for the others only."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    rows, out = tmp_path / "rows.jsonl", tmp_path / "out"
    skills = ["direct", "direct", "ood", "ood"]
    rows.write_text(
        "".join(
            json.dumps({"prompt": f"blax a b {'c d e f'[: 2 * i + 1]}", "answer": f"row-{i}", "skill": skill})
            + "\n"
            for i, skill in enumerate(skills)
        )
    )
    grades, up = ["CORRECT", "PARTIALLY", "INCORRECT", "CORRECT"], [False]

    def respond(messages):
        number = int(messages[0]["content"].partition("row-")[2][0])
        return grades[number] if up[0] or number < 2 else Response(503)

    small = ("mesh.fsdp=1", "eval.batch_size=4", "sampling.max_new_tokens=4", "eval.teacher=false")
    command = ["evaluate", str(tiny_directory), str(rows), "--task", "judge", "--out", str(out), *small]
    with serve(respond) as endpoint:
        command += endpoint.settings(tmp_path / "replies.jsonl", "judge.concurrency=1")
        assert cli.main(command) == 2
        first = capsys.readouterr()
        assert "gave no grade for 2 answers, which count as wrong: " in first.out
        assert "some answers have no grade yet: run the command again" in first.err
        assert [one["fault"] is None for one in read_answers(out)] == [True, True, False, False]
        asked = len(endpoint.bodies)
        up[0] = True
        monkeypatch.setattr(evaluate, "load_speaker", pytest.fail)  # the answers are there
        assert cli.main(command) == 0
        assert len(endpoint.bodies) == asked + 2
    roles = json.loads((out / "summary.json").read_text())
    assert roles["scorer"] == "grader with the prompt facts-v1"
    numbers = {"all": roles["roles"]["student"], **roles["skills"]["student"]}
    assert {name: (one["accuracy"], one["lenient"]) for name, one in numbers.items()} == {
        "all": (0.5, 0.75),
        "direct": (0.5, 1.0),
        "ood": (0.5, 0.5),
    }
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("student")]
    assert [line.split("  ")[0] for line in table] == ["student", "student, direct", "student, ood"]
    answers = read_answers(out)
    assert [(one["correct"], one["partly"], one["fault"]) for one in answers] == [
        (True, False, None),
        (False, True, None),
        (False, False, None),
        (True, False, None),
    ]
