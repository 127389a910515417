"""The files of a run, its claim on a directory, and its copy in a bucket."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from sdft_jax.config import Config, from_dict, load_config, to_dict
from sdft_jax.errors import SdftError
from sdft_jax.files import sealed
from sdft_jax.training.run_directory import RESUMABLE, RunDirectory, identity

CONFIG = to_dict(Config())


def test_local_run_has_all_files_in_its_output():
    run = RunDirectory("runs/a")
    assert not run.is_remote
    assert run.local == Path("runs/a")
    assert str(run.config) == "runs/a/config.yaml"
    assert str(run.checkpoints) == f"{os.getcwd()}/runs/a/checkpoints"
    files = (run.metrics, run.evaluations, run.rollouts, run.model, run.profile, run.plot, run.summary)
    names = ("metrics.jsonl", "evaluations.jsonl", "rollouts", "model", "profile", "run.png", "summary.json")
    assert files == tuple(Path("runs/a") / name for name in names)
    assert run.named(run.plot) == "runs/a/run.png"
    assert str(RunDirectory("/runs/a").checkpoints) == "/runs/a/checkpoints"


def test_remote_run_has_a_local_directory_for_all_but_its_checkpoints(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    run = RunDirectory("gs://bucket/runs/a")
    assert run.is_remote
    assert run.local == Path("/cache/sdft_jax/mirror/gs/bucket/runs/a")
    assert str(run.checkpoints) == "gs://bucket/runs/a/checkpoints"
    assert str(run.config) == "gs://bucket/runs/a/config.yaml"
    assert run.metrics == run.local / "metrics.jsonl"
    assert run.named(run.model) == "gs://bucket/runs/a/model"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", "/home/me")
    assert run.local == Path("/home/me/.cache/sdft_jax/mirror/gs/bucket/runs/a")


@pytest.mark.parametrize("output", ["gs://bucket/runs/a", "gs://bucket/runs/a/"])
def test_a_run_inside_a_run(output):
    assert RunDirectory(output).below("sft") == RunDirectory("gs://bucket/runs/a/sft")


def changed(key: str, value) -> dict:
    """Return the default configuration with another value of one key."""
    tree = json.loads(json.dumps(CONFIG))
    *sections, name = key.split(".")
    target = tree
    for section in sections:
        target = target[section]
    target[name] = value
    return tree


def claim(output: Path, config=CONFIG, **options) -> bool:
    with RunDirectory(str(output)).claimed(config, **options) as resumed:
        return resumed


def test_claim_then_resume(tmp_path):
    output = tmp_path / "a" / "run"
    assert claim(output) is False
    assert from_dict(yaml.safe_load((output / "config.yaml").read_text()), "claimed") == Config()
    (output / "metrics.jsonl").write_text("")
    assert claim(output) is True
    resumable = {"train.choose": "best", "train.patience": 3, "train.max_kl": 0.5, "mesh.tensor": 2}
    for key, value in resumable.items():
        assert claim(output, changed(key, value)) is True
    assert yaml.safe_load((output / "config.yaml").read_text())["mesh"]["tensor"] == 2
    assert sorted(os.listdir(output)) == [".lock", "config.yaml", "metrics.jsonl"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("data.path", "x.jsonl"),
        ("train.steps", 9),
        ("teacher.rate", 0.5),
        ("data.thoughts", "remove"),
        ("eval.base", "x"),
        ("continual.stages", [{"name": "x"}]),
        ("continual.seeds", [1]),
    ],
)
def test_another_run_is_refused(tmp_path, key, value):
    claim(tmp_path / "run")
    before = (tmp_path / "run" / "config.yaml").read_bytes()
    ours = re.escape(repr(value))
    with pytest.raises(
        SdftError,
        match=rf"^output=\S+ holds another run: its {key} is .*, and this one's is {ours}: "
        r"give another output=, or delete \S+/run\.$",
    ):
        claim(tmp_path / "run", changed(key, value))
    assert (tmp_path / "run" / "config.yaml").read_bytes() == before
    assert claim(tmp_path / "run")


@pytest.mark.parametrize("key", ["data.template_kwargs", "data.teacher_template_kwargs"])
def test_arguments_of_the_chat_template_belong_to_the_run(tmp_path, key):
    switched = changed(key, {"enable_thinking": False})
    assert identity(switched) != identity(CONFIG)
    for first, second in ((CONFIG, switched), (switched, CONFIG)):
        output = tmp_path / str(first is CONFIG)
        claim(output, first)
        with pytest.raises(SdftError, match=rf"another run: its {key}\.enable_thinking is .* this one's is"):
            claim(output, second)
        assert claim(output, first) is True


def test_more_keys_may_differ_if_the_caller_allows_them(tmp_path):
    resumable = (*RESUMABLE, "continual.seeds")
    claim(tmp_path / "run", resumable=resumable)
    assert claim(tmp_path / "run", changed("continual.seeds", [1]), resumable=resumable) is True
    with pytest.raises(SdftError, match=r"its continual\.seeds is \[1\], and this one's is \[\]"):
        claim(tmp_path / "run")


def test_key_that_only_one_configuration_has_differs(tmp_path):
    """Such a run was written by another version of the program."""
    claim(tmp_path / "run", {**CONFIG, "train": CONFIG["train"] | {"removed": 3}})
    with pytest.raises(SdftError, match=r"its train\.removed is 3, and this one's is None"):
        claim(tmp_path / "run")


def test_foreign_files_are_refused_and_named(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    (tmp_path / ".hidden").write_text("")
    with pytest.raises(
        SdftError, match=r"files that do not belong to a run, such as thesis\.tex: give another output="
    ):
        claim(tmp_path)
    with pytest.raises(SdftError, match=r"thesis\.tex cannot be written \(File exists: "):
        claim(tmp_path / "thesis.tex")
    assert sorted(os.listdir(tmp_path)) == [".hidden", "thesis.tex"]


def test_hidden_files_are_not_foreign(tmp_path):
    (tmp_path / ".hidden").write_text("")
    assert claim(tmp_path) is False


def test_a_run_of_a_version_with_fewer_keys_resumes(tmp_path):
    claim(tmp_path)
    settings = yaml.safe_load((tmp_path / "config.yaml").read_text())
    del settings["lora"]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    with pytest.raises(SdftError, match=r"its lora\.rank is 0, and this one's is 4"):
        claim(tmp_path, changed("lora.rank", 4))
    assert claim(tmp_path) is True


BROKEN = [b"[1, 2", b"[1, 2]", b"", b"\xff\xfe"]


@pytest.mark.parametrize("text", BROKEN)
def test_broken_configuration_is_remade_if_the_checkpoints_are_of_this_run(tmp_path, text):
    (tmp_path / "config.yaml").write_bytes(text)
    meta = tmp_path / "checkpoints" / "2" / "meta"
    meta.mkdir(parents=True)
    (meta / "metadata").write_text(json.dumps(sealed({"run": identity(CONFIG)})))
    assert claim(tmp_path) is True
    assert RunDirectory(str(tmp_path)).load_config() == Config()
    (tmp_path / "config.yaml").write_bytes(text)
    with pytest.raises(SdftError, match=r"config\.yaml is not the configuration of a run: restore it"):
        claim(tmp_path, changed("train.steps", 9))


@pytest.mark.parametrize("text", BROKEN)
def test_broken_configuration_is_refused(tmp_path, text):
    (tmp_path / "config.yaml").write_bytes(text)
    with pytest.raises(
        SdftError, match=r"config\.yaml is not the configuration of a run: restore it from a backup, or"
    ):
        claim(tmp_path)


def test_resumable_keys_exist():
    known = {"output", "preset", "baseline", *CONFIG}
    for key in RESUMABLE:
        section, _, name = key.partition(".")
        assert section in known
        assert not name or name in CONFIG[section]


def test_configuration_of_a_run(finished):
    config = RunDirectory(str(finished)).load_config()
    assert config.train.steps == 6
    assert config == load_config(finished / "config.yaml")


def test_directory_that_is_not_a_run(tmp_path):
    with pytest.raises(SdftError, match=r"is not a run directory, since it has no config\.yaml: give the"):
        RunDirectory(str(tmp_path)).load_config()


def test_local_run_is_not_copied(tmp_path):
    run = RunDirectory(str(tmp_path / "a"))
    run.push()
    run.pull(resumed=False)
    run.pull(resumed=True)
    assert not (tmp_path / "a").exists()


STEPS = {
    "write": """
with run.claimed(to_dict(Config())) as resumed:
    assert not resumed
    assert (epath.Path(run.output) / ".lock").exists()
assert not (epath.Path(run.output) / ".lock").exists()
assert run.load_config() == Config()
run.pull(resumed=False)
run.metrics.write_text("1")
run.rollouts.mkdir()
(run.rollouts / "000001.txt").write_text("a")
(run.local / "checkpoints").mkdir()
(run.local / "checkpoints" / "not copied").write_text("x")
run.push()
""",
    "add": """
before = (epath.Path(run.output) / "rollouts" / "000001.txt").stat().mtime
run.metrics.write_text("1 2")
run.push()
assert (epath.Path(run.output) / "rollouts" / "000001.txt").stat().mtime == before  # copied once
assert not run.checkpoints.exists()
""",
    "resume": """
assert not run.local.exists()
with run.claimed(to_dict(Config())) as resumed:
    assert resumed
run.pull(resumed=True)
assert run.metrics.read_text() == "1 2"
assert (run.rollouts / "000001.txt").read_text() == "a"
""",
    "start again": """
other = RunDirectory("gs://bucket/runs/b")
other.pull(resumed=False)
assert list(other.local.iterdir()) == []
(run.local / "stale").write_text("x")
(epath.Path(run.output) / "metrics.jsonl").unlink()
run.pull(resumed=False)
assert sorted(path.name for path in run.local.iterdir()) == ["config.yaml", "rollouts"]
""",
}


def test_run_in_a_bucket_is_resumed_on_another_machine(bucket_environment, tmp_path):
    def execute(home: str, *steps: str) -> None:
        code = """
from etils import epath
from sdft_jax.config import Config, to_dict
from sdft_jax.training.run_directory import RunDirectory
"""
        for step in steps:
            code += f'run = RunDirectory("gs://bucket/runs/a")\n{STEPS[step]}'
        environment = bucket_environment | {"XDG_CACHE_HOME": str(tmp_path / home)}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    execute("one", "write", "add")
    execute("two", "resume", "start again")


def test_paths_of_a_run_are_found_from_another_directory(tmp_path, monkeypatch):
    (tmp_path / "models" / "base").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    given = to_dict(load_config(None, ["model.path=models/base", "data.path=mini:blax", "output=run"]))
    claim(Path("run"), given)
    assert RunDirectory("run").load_config().model.path == f"{tmp_path}/models/base"
    monkeypatch.chdir("/")
    config = RunDirectory(str(tmp_path / "run")).load_config()
    assert (config.model.path, config.data.path) == (f"{tmp_path}/models/base", "mini:blax")
    assert identity(to_dict(config)) == identity(given)
    assert claim(tmp_path / "run", given) is True


def test_the_constants_of_the_optimizer_that_an_older_version_wrote_are_its_defaults(tmp_path):
    """A run that began when AdamW's constants were defaults of the settings goes on, with the same digest."""
    older = {key: value for key, value in CONFIG["optimizer"].items() if key not in ("name", "moments")}
    older = {**CONFIG, "optimizer": {**older, "b1": 0.9, "b2": 0.999, "eps": 1e-8}}
    claim(tmp_path / "run", older)
    assert claim(tmp_path / "run", CONFIG) is True
    assert identity(older) == identity(CONFIG)
    lion = {**CONFIG, "optimizer": {**CONFIG["optimizer"], "name": "lion"}}
    explicit, other = ({**lion, "optimizer": {**lion["optimizer"], "b2": b2}} for b2 in (0.99, 0.999))
    assert identity(lion) == identity(explicit) != identity(other)
    assert identity(other) != identity({**CONFIG, "optimizer": {**CONFIG["optimizer"], "b2": 0.99}})
