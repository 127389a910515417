"""Tests of the launchers without a cloud: shellcheck, stored dry runs, fake cloud tools, Kubernetes schemas.

`python tests/test_launch.py --update` regenerates the dry runs in tests/launch_expected.
"""

from __future__ import annotations

import copy
import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml

ROOT = Path(__file__).parent.parent
LAUNCH = ROOT / "launch_tpu"
EXPECTED = ROOT / "tests" / "launch_expected"
LAUNCHERS = ["queued.sh", "compute_engine.sh", "gke.sh", "xpk.sh"]
KUBERNETES = "1.34"

CONFIG = "configs/quickstart.yaml"
TASK = "configs/tasks/science.yaml"
AWKWARD = """data.path=it's "a" & $HOME $(HOME) %h \\ *.jsonl"""
PLACE = ["--name", "sdft-1", "--zone", "us-east5-b"]
SLICE = [*PLACE, "--type", "v6e-16"]
GCE = ["--name", "sdft-1", "--type", "tpu7x-16", "--zone", "us-central1-c", "--project", "my-project"]
BUCKET = ["--bucket", "my-bucket"]
IMAGE = ["--image", "us-docker.pkg.dev/p/r/sdft"]
XPK = ["--cluster", "trial", "--zone", "us-east5-b", "--project", "my-project"]
JOB = ["--name", "sdft-1", "--type", "v6e-4x4", *BUCKET, *IMAGE]

DRY_RUNS = {
    "queued_create": ["queued.sh", "create", *SLICE],
    "queued_create_vm": ["queued.sh", "create", *PLACE, "--type", "v5e-8", "--project", "my-project"],
    "queued_create_multislice": ["queued.sh", "create", *SLICE, "--slices", "2", "--spot"],
    "queued_setup": ["queued.sh", "setup", *PLACE],
    "queued_run": ["queued.sh", "run", *PLACE, *BUCKET, "--input", "pyproject.toml", CONFIG, AWKWARD],
    "queued_logs": ["queued.sh", "logs", *PLACE],
    "queued_watch": ["queued.sh", "watch", *SLICE, *BUCKET, "--spot", "--delete-after", CONFIG],
    "queued_delete": ["queued.sh", "delete", *PLACE],
    "compute_engine_create": ["compute_engine.sh", "create", *GCE],
    "compute_engine_create_vm": ["compute_engine.sh", "create", *GCE, "--type=v6e-4", "--spot"],
    "compute_engine_setup": ["compute_engine.sh", "setup", *GCE, "--package", "sdft_jax[tpu]==0.1.0"],
    "compute_engine_run": ["compute_engine.sh", "run", *GCE, *BUCKET, CONFIG, AWKWARD],
    "compute_engine_status": ["compute_engine.sh", "status", *GCE],
    "compute_engine_logs": ["compute_engine.sh", "logs", *GCE],
    "compute_engine_delete": ["compute_engine.sh", "delete", *GCE],
    "gke_queue": ["gke.sh", "queue", "--type", "v6e-16", "--slices", "2"],
    "gke_render": ["gke.sh", "render", *JOB, CONFIG, AWKWARD],
    "gke_apply_multislice": ["gke.sh", "apply", *JOB, "--slices", "2", "--spot", CONFIG, "train.seed=1"],
    "gke_logs": ["gke.sh", "logs", "--name", "sdft-1"],
    "gke_delete": ["gke.sh", "delete", "--name", "sdft-1"],
    "xpk_cluster": ["xpk.sh", "cluster", *XPK, "--type", "v6e-16", "--slices", "2", "--spot"],
    "xpk_run": ["xpk.sh", "run", *XPK, *JOB, CONFIG, AWKWARD],
    "xpk_logs": ["xpk.sh", "logs", "--name", "sdft-1"],
    "xpk_delete": ["xpk.sh", "delete", *XPK, "--name", "sdft-1"],
    "xpk_delete_cluster": ["xpk.sh", "delete-cluster", *XPK],
}


def launch(arguments, *, path=None, home=None, **variables):
    """Run a launcher, with `path` first on PATH, `home` as HOME and additional environment variables."""
    script, *rest = arguments
    environment = {**os.environ, "SDFT_LAUNCH_POLL": "0", "LC_ALL": "C.UTF-8", **variables}
    if path:
        environment["PATH"] = f"{path}:{environment['PATH']}"
    if home:
        environment["HOME"] = str(home)
    command = ["bash", f"launch_tpu/{script}", *rest]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)


def dry_run(arguments):
    """Return the completed process of a launcher's dry run."""
    result = launch([*arguments, "--dry-run"], path="/nonexistent")
    assert result.returncode == 0, result.stderr
    return result


def printed_commands(stderr):
    """Return the commands that a launcher printed, each as a list of words."""
    return [shlex.split(line[2:]) for line in stderr.splitlines() if line.startswith("+ ")]


# --- fake cloud tools -----------------------------------------------------------------------------------

FAKE = """#!{python} -SE
import json, os, sys
here, tool, words = {here!r}, os.path.basename(sys.argv[0]), sys.argv[1:]
with open(here + "/calls", "a") as calls:
    calls.write(json.dumps([tool, *words]) + "\\n")
with open(here + "/cloud") as file:
    cloud = json.load(file)
text, code = " ".join(words), 0
if tool == "kubectl":
    if "apply" in words:
        open(here + "/stdin", "w").write(sys.stdin.read())
    print(cloud.get("kubectl", ""))
elif " list-instances " in text:
    print("sdft-1-vm1\\nsdft-1-vm0")
elif " list " in text:
    print(cloud["state"])
elif " create " in text and "queued-resources" in text:
    cloud["state"] = "ACTIVE"
elif " delete " in text and "queued-resources" in text:
    cloud["state"] = ""
elif " ssh " in text and "worker.sh status" in text:
    answer = cloud["status"].pop(0)
    if answer in ("preempted", "silent"):
        cloud["state"] = "SUSPENDED" if answer == "preempted" else cloud["state"]
        code = 255
    elif answer != "garbled":
        lines = answer.split("|")
        print("\\n".join("sdft: " + line for line in lines + lines[-1:] * (4 - len(lines))))
elif " ssh " in text and cloud.get("execute"):
    command = next(word for word in words if word.startswith("--command="))[len("--command="):]
    os.chdir(os.environ["HOME"])
    code = os.spawnlp(os.P_WAIT, "bash", "bash", "-c", command)
with open(here + "/cloud", "w") as file:
    json.dump(cloud, file)
sys.exit(code)
"""


class Cloud:
    """Fake gcloud, kubectl and xpk, which record their calls and keep the state of one queued resource."""

    def __init__(self, directory: Path, **cloud):
        self.directory = directory
        self.bin = directory / "bin"
        self.bin.mkdir()
        for tool in ("gcloud", "kubectl", "xpk"):
            self.tool(tool, FAKE.format(python=sys.executable, here=str(directory)))
        (directory / "cloud").write_text(json.dumps({"state": "", "status": [], **cloud}))

    def tool(self, name, text):
        (self.bin / name).write_text(text)
        (self.bin / name).chmod(0o755)

    def launch(self, arguments, **variables):
        return launch(arguments, path=self.bin, **variables)

    def calls(self, *words):
        """Return the recorded calls that contain all of `words`."""
        path = self.directory / "calls"
        calls = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return [call for call in calls if all(word in " ".join(call) for word in words)]


# --- scripts --------------------------------------------------------------------------------------------


def shellcheck(*arguments, text=None):
    tool = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    result = subprocess.run([tool, *arguments], input=text, cwd=ROOT, capture_output=True, text=True)
    return result.stdout + result.stderr


def test_shellcheck_reports_no_issues():
    scripts = sorted(str(path) for path in LAUNCH.rglob("*.sh"))
    assert len(scripts) == 6
    assert shellcheck("--external-sources", *scripts) == ""
    task = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())
    for part in ("setup", "run"):
        header = "export NAME BUCKET CONFIG OVERRIDES\n# shellcheck disable=SC2154\n"
        assert shellcheck("--shell=bash", "--exclude=SC2154", "-", text=header + task[part]) == ""


def test_shellcheck_reports_an_unquoted_variable():
    assert "SC2086" in shellcheck("--shell=bash", "-", text="rm $1\n")


@pytest.mark.parametrize("name", DRY_RUNS)
def test_dry_run_equals_the_stored_output(name):
    result = dry_run(DRY_RUNS[name])
    assert result.stderr + result.stdout == (EXPECTED / f"{name}.txt").read_text(), (
        "if the change is intended, run: python tests/test_launch.py --update"
    )


def test_each_action_has_a_stored_dry_run_and_no_other_is_stored():
    for script in LAUNCHERS:
        actions = re.search(r'^parse "([^"]*)"', (LAUNCH / script).read_text(), re.M)[1].split()
        assert set(actions) == {words[1] for words in DRY_RUNS.values() if words[0] == script}
    assert {path.stem for path in EXPECTED.glob("*.txt")} == set(DRY_RUNS)


@pytest.mark.parametrize("script", [*LAUNCHERS])
def test_help_includes_costs_and_tear_down(script):
    help_text = launch([script, "--help"]).stdout
    assert launch([script, "help"]).stdout == help_text
    assert "Costs:" in help_text
    assert "Tear down:" in help_text
    assert "--dry-run" in help_text
    assert help_text.count("\n") > 10


# --- the printed commands are the commands that are run -------------------------------------------------


@pytest.mark.parametrize("name", [name for name in DRY_RUNS if name != "queued_watch"])
def test_a_real_run_calls_the_commands_of_the_dry_run(name, tmp_path):
    states = {"queued_setup": "ACTIVE", "queued_delete": "ACTIVE", "compute_engine_delete": "sdft-1"}
    cloud = Cloud(tmp_path, state=states.get(name, ""), status=["running", "running"])
    result = cloud.launch(DRY_RUNS[name])
    assert result.returncode == 0, result.stderr
    stored = (EXPECTED / f"{name}.txt").read_text()
    assert cloud.calls() == printed_commands(stored) == printed_commands(result.stderr)


def test_apply_passes_the_rendered_manifest_to_kubectl(tmp_path):
    cloud = Cloud(tmp_path)
    cloud.launch(["gke.sh", "apply", *JOB, CONFIG, AWKWARD])
    assert (tmp_path / "stdin").read_text() == dry_run(["gke.sh", "render", *JOB, CONFIG, AWKWARD]).stdout


@pytest.mark.parametrize("name", ["queued_create", "compute_engine_create", "xpk_run"])
def test_create_does_nothing_if_the_resource_exists(name, tmp_path):
    cloud = Cloud(tmp_path, state="ACTIVE", kubectl="jobset.jobset.x-k8s.io/sdft-1")
    assert cloud.launch(DRY_RUNS[name]).returncode == 0
    assert cloud.calls()
    assert not cloud.calls(" create ")


@pytest.mark.parametrize("name", ["queued_delete", "compute_engine_delete"])
def test_delete_does_nothing_if_the_resource_is_absent(name, tmp_path):
    cloud = Cloud(tmp_path)
    assert cloud.launch(DRY_RUNS[name]).returncode == 0
    assert cloud.calls()
    assert not cloud.calls(" delete ")


def test_setup_fails_on_a_preempted_slice(tmp_path):
    cloud = Cloud(tmp_path, state="SUSPENDED")
    result = cloud.launch(DRY_RUNS["queued_setup"])
    assert result.returncode == 1
    assert "SUSPENDED" in result.stderr
    assert not cloud.calls(" ssh ")


# --- arguments reach sdft unchanged ---------------------------------------------------------------------

RECORD = '#!/usr/bin/env bash\nprintf "%s\\0" "$PWD" "${JAX_COMPILATION_CACHE_DIR-}" "$@" >"$HOME/ran"\n'


def fake_sdft(home: Path):
    """Create executables that record their working directory, cache directory and arguments in home/ran."""
    binary = home / "sdft-env" / "bin"
    binary.mkdir(parents=True)
    for name in ("sdft", "python"):
        (binary / name).write_text(RECORD)
        (binary / name).chmod(0o755)
    return binary


def recorded(home: Path):
    """Return the strings recorded by the fake sdft."""
    return (home / "ran").read_text().split("\0")[:-1]


def test_further_config_is_an_input_whose_output_does_not_count():
    result = dry_run(["queued.sh", "run", *PLACE, *BUCKET, CONFIG, "train.seed=1", TASK])
    assert f"cp {CONFIG} {TASK} gs://my-bucket/inputs/sdft-1/" in result.stderr
    command = "train quickstart.yaml science.yaml output=gs://my-bucket/runs/sdft-1 train.seed=1"
    assert command in result.stderr


def test_arguments_reach_sdft_unchanged_on_a_vm(tmp_path):
    """The arguments pass through queued.sh, ssh, worker.sh and the file for systemd, with real shells."""
    home = tmp_path / "home"
    fake_sdft(home)
    (home / "worker.sh").write_text((LAUNCH / "worker.sh").read_text())
    cloud = Cloud(tmp_path, execute=True)
    cloud.tool("sudo", '#!/bin/sh\nexec "$@"\n')
    cloud.tool("systemctl", '#!/bin/sh\n[ "$1" != show ] || echo LoadState=not-found\n')
    cloud.tool(
        "systemd-run", f'#!/usr/bin/env bash\necho "$@" >{home}/unit\ncd ~/sdft-inputs\nbash "${{@: -1}}"\n'
    )
    result = cloud.launch(DRY_RUNS["queued_run"], home=home)
    assert result.returncode == 0, result.stderr
    assert recorded(home) == [
        str(home / "sdft-inputs"),
        "gs://my-bucket/compiled",
        "train",
        "quickstart.yaml",
        "output=gs://my-bucket/runs/sdft-1",
        AWKWARD,
    ]
    assert "--property=RemainAfterExit=yes" in (home / "unit").read_text()
    assert "export SDFT_MAINTENANCE=5\n" in (home / "sdft-command.sh").read_text()
    assert cloud.calls("storage rsync", "gs://my-bucket/inputs/sdft-1")


def test_arguments_reach_sdft_unchanged_through_xpk_and_skypilot(tmp_path):
    binary = fake_sdft(tmp_path)
    environment = {**os.environ, "HOME": str(tmp_path), "PATH": f"{binary}:{os.environ['PATH']}"}
    create = printed_commands(dry_run(DRY_RUNS["xpk_run"]).stderr)[-1]
    command = next(word for word in create if word.startswith("--command="))
    subprocess.run(["bash", "-c", command.removeprefix("--command=")], env=environment, cwd=ROOT, check=True)
    words = ["train", "quickstart.yaml", "output=gs://my-bucket/runs/sdft-1", AWKWARD]
    assert recorded(tmp_path)[2:] == words

    task = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())
    variables = {
        "NAME": "sdft-1",
        "BUCKET": "my-bucket",
        "CONFIG": CONFIG,
        "OVERRIDES": shlex.join(["a=1", AWKWARD]),
    }
    assert set(variables) == set(task["envs"])
    subprocess.run(["bash", "-c", task["run"]], env={**environment, **variables}, cwd=ROOT, check=True)
    assert recorded(tmp_path)[1:] == ["gs://my-bucket/compiled", "train", CONFIG, words[2], "a=1", AWKWARD]
    assert "export SDFT_MAINTENANCE=5" in task["run"]
    assert task["resources"]["job_recovery"]["recover_on_exit_codes"] == [143]


@pytest.mark.parametrize(
    ("unit", "status"),
    [
        ("LoadState=not-found SubState=dead ExecMainCode=0 ExecMainStatus=0", "absent"),
        ("LoadState=loaded SubState=running ExecMainCode=0 ExecMainStatus=0", "running"),
        ("LoadState=loaded SubState=exited ExecMainCode=1 ExecMainStatus=0", "exit 0"),
        ("LoadState=loaded SubState=failed ExecMainCode=1 ExecMainStatus=2", "exit 2"),
        ("LoadState=loaded SubState=failed ExecMainCode=1 ExecMainStatus=143", "exit 143"),
        ("LoadState=loaded SubState=failed ExecMainCode=2 ExecMainStatus=2", "exit 130"),
        ("LoadState=loaded SubState=failed ExecMainCode=2 ExecMainStatus=9", "exit 137"),
    ],
)
def test_worker_status(unit, status, tmp_path):
    cloud = Cloud(tmp_path)
    cloud.tool("systemctl", "#!/bin/sh\nprintf '%s\\n' " + unit + "\n")
    assert cloud.launch(["worker.sh", "status"]).stdout == f"sdft: {status}\n"


# --- watch ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("statuses", "options", "code", "creates", "runs", "deletes"),
    [
        (["absent", "running", "exit 0|exit 0"], [], 0, 1, 1, 0),
        (["absent", "running", "preempted", "absent", "running", "exit 0"], [], 0, 2, 2, 1),
        (["absent", "exit 2|running"], [], 2, 1, 1, 0),
        (["absent", "exit 1|exit 2|exit 143"], ["--delete-after"], 2, 1, 1, 1),
        (["absent", "exit 1", "exit 134|running", "exit 1"], ["--restarts", "2"], 1, 1, 3, 0),
        (["absent", *["exit 143|exit 143"] * 5, "exit 0"], ["--restarts", "0"], 0, 1, 6, 0),
        (["absent", "exit 0|running", "exit 0|exit 0"], [], 0, 1, 1, 0),
        (
            ["absent", *["silent"] * 9, "running", *["silent", "garbled"] * 5, "absent", "exit 0"],
            [],
            0,
            2,
            2,
            1,
        ),
        (["absent", "running", "absent|exit 143", "exit 0|exit 0"], ["--restarts", "0"], 0, 1, 2, 0),
    ],
    ids=[
        "done",
        "preempted",
        "user-error",
        "user-error-deleted",
        "failure",
        "sigterm",
        "uneven",
        "silent",
        "rebooted",
    ],
)
def test_watch(statuses, options, code, creates, runs, deletes, tmp_path):
    cloud = Cloud(tmp_path, status=statuses)
    result = cloud.launch(["queued.sh", "watch", *SLICE, *BUCKET, "--spot", *options, CONFIG])
    assert result.returncode == code, result.stderr
    assert len(cloud.calls("queued-resources create")) == creates
    assert len(cloud.calls("worker.sh run")) == runs
    assert len(cloud.calls("queued-resources delete")) == deletes
    assert len(cloud.calls("storage cp")) == 1
    assert bool(cloud.calls("worker.sh tail")) == any(
        re.search(r"exit (?!143|0)", status) for status in statuses
    )
    assert ("is still billed" in result.stderr) == (deletes == 0 or not options)
    assert json.loads((tmp_path / "cloud").read_text())["status"] == []


# --- user errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "culprit", "remedy"),
    [
        (["queued.sh"], "no action", "create, setup"),
        (["queued.sh", "crate"], "crate", "create"),
        (["queued.sh", "create", *PLACE], "--type", "v6e-16"),
        (["queued.sh", "create", *PLACE, "--type"], "--type", "v6e-16"),
        (["queued.sh", "create", *PLACE, "--type", "v6e-17"], "v6e-17", "v6e-16"),
        (["queued.sh", "create", *PLACE, "--type", "v5e-17"], "v5e-17", "v5litepod-16"),
        (["gke.sh", "queue", "--type", "v6e-4x5"], "v6e-4x5", "v6e-4x4"),
        (["queued.sh", "create", *PLACE, "--type", "tpu7x-8"], "tpu7x-8", "compute_engine.sh"),
        (["compute_engine.sh", "create", *GCE, "--type", "v4-8"], "v4-8", "queued.sh"),
        (["queued.sh", "create", *SLICE, "--slice", "2"], "--slice", "--slices"),
        (["queued.sh", "create", *SLICE, "--slices", "two"], "two", "whole number"),
        (["queued.sh", "delete", "--zone", "z", "--name", "My_Run"], "My_Run", "lowercase"),
        (["gke.sh", "render", *JOB, "--bucket", "gs://a b", CONFIG], "a b", "my-bucket"),
        (["queued.sh", "run", *PLACE, CONFIG], "--bucket", "bucket"),
        (["queued.sh", "run", *PLACE, *BUCKET], "CONFIG", "configs/quickstart.yaml"),
        (["queued.sh", "run", *PLACE, *BUCKET, "configs/none.yaml"], "configs/none.yaml", "give a YAML"),
        (["gke.sh", "apply", *JOB, CONFIG, "train.batch_size", "8"], "train.batch_size", "key=value"),
        (["gke.sh", "apply", *JOB, CONFIG, "--input", "none.jsonl"], "none.jsonl", "give a file"),
        (["gke.sh", "apply", *JOB, CONFIG, "none.yaml"], "none.yaml", "configs/tasks/science.yaml"),
        (["xpk.sh", "run", *XPK, *JOB, CONFIG, TASK], TASK, "into one file"),
        (["xpk.sh", "run", *DRY_RUNS["xpk_run"][2:], "--command", "trian"], "trian", "train"),
        (["queued.sh", "watch", *SLICE, *BUCKET, CONFIG, "--restarts", "x"], "--restarts x", "whole number"),
        (["worker.sh", "rnu"], "rnu", "run"),
    ],
)
def test_a_user_error_prints_one_line_and_calls_no_tool(words, culprit, remedy, tmp_path):
    cloud = Cloud(tmp_path)
    result = cloud.launch(words)
    assert result.returncode == 2
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert culprit in result.stderr
    assert remedy in result.stderr
    assert cloud.calls() == []


# --- manifests ------------------------------------------------------------------------------------------


def validate(manifest):
    """Validate a manifest against the schemas of its kind and, for a JobSet, of Kubernetes Jobs."""
    schemas = yaml.safe_load((EXPECTED / "crds.yaml").read_text())
    jsonschema.validate(manifest, schemas[manifest["kind"]])
    for job in manifest["spec"].get("replicatedJobs", []):
        full_job = {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {"name": job["name"]},
            **job["template"],
        }
        kubernetes_validate.validate(full_job, KUBERNETES, strict=True)


def rendered(*words):
    return list(yaml.safe_load_all(dry_run(["gke.sh", *words]).stdout))


@pytest.fixture(scope="module")
def manifests():
    [jobset] = rendered("render", *JOB, "--slices", "2", "--spot", CONFIG, AWKWARD, "a=@NAME@")
    flavor, cluster, local = rendered("queue", "--type", "v6e-16", "--slices", "2")
    return {"jobset": jobset, "flavor": flavor, "cluster": cluster, "local": local}


def test_manifests_match_the_kubernetes_schemas(manifests):
    for manifest in manifests.values():
        validate(manifest)
    [single] = rendered("render", *JOB, "--type", "tpu7x-8", CONFIG)
    validate(single)
    assert single["spec"]["replicatedJobs"][0]["template"]["spec"]["parallelism"] == 1


@pytest.mark.parametrize(
    ("name", "path", "key", "wrong"),
    [
        ("jobset", [], "spec", "specs"),
        ("jobset", ["spec", "failurePolicy"], "maxRestarts", "maxRestart"),
        ("jobset", ["spec", "replicatedJobs", 0], "replicas", "replica"),
        ("jobset", ["spec", "replicatedJobs", 0, "template", "spec"], "backoffLimit", "backofLimit"),
        (
            "jobset",
            ["spec", "replicatedJobs", 0, "template", "spec", "template", "spec"],
            "nodeSelector",
            "nodeSelectors",
        ),
        (
            "jobset",
            ["spec", "replicatedJobs", 0, "template", "spec", "template", "spec", "containers", 0],
            "image",
            "imgae",
        ),
        ("flavor", ["spec"], "nodeLabels", "nodeLabel"),
        ("cluster", ["spec", "resourceGroups", 0, "flavors", 0, "resources", 0], "nominalQuota", "quota"),
        ("local", ["spec"], "clusterQueue", "queue"),
    ],
)
def test_a_misspelled_key_is_rejected(name, path, key, wrong, manifests):
    manifest = copy.deepcopy(manifests[name])
    parent = manifest
    for step in path:
        parent = parent[step]
    parent[wrong] = parent.pop(key)
    with pytest.raises((jsonschema.ValidationError, KeyError)):
        validate(manifest)


def test_the_jobset_requests_the_slice_and_preserves_its_arguments(manifests):
    jobset = manifests["jobset"]
    [job] = jobset["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    pod = spec["template"]["spec"]
    [container] = pod["containers"]
    assert (job["replicas"], spec["parallelism"], spec["completions"]) == (2, 4, 4)
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v6e-slice",
        "cloud.google.com/gke-tpu-topology": "4x4",
        "cloud.google.com/gke-spot": "true",
    }
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    # Kubernetes converts $$( to $(.
    words = [word.replace("$$(", "$(") for word in container["args"]]
    assert words == ["train", "quickstart.yaml", "output=gs://my-bucket/runs/sdft-1", AWKWARD, "a=@NAME@"]
    assert all("$(" not in word.replace("$$(", "") for word in container["args"])
    assert pod["initContainers"][0]["command"][-2:] == ["gs://my-bucket/inputs/sdft-1", "/inputs"]


def test_a_user_error_fails_the_jobset_and_a_preemption_does_not_count_as_a_restart(manifests):
    """The first matching rule decides. The messages are those that Kubernetes writes for a failed Job."""
    spec = manifests["jobset"]["spec"]
    codes = spec["replicatedJobs"][0]["template"]["spec"]["podFailurePolicy"]["rules"][0]["onExitCodes"]
    assert codes["values"] == [2, 143]

    def action(reason, message):
        for rule in spec["failurePolicy"]["rules"]:
            patterns = rule.get("onJobFailureMessagePatterns", [""])
            if reason in rule.get("onJobFailureReasons", [reason]) and any(
                re.search(pattern, message) for pattern in patterns
            ):
                return rule["action"]
        return "RestartJobSet"

    message = "Container sdft for pod default/a failed with exit code {} matching FailJob rule at index 0"
    assert action("PodFailurePolicy", message.format(2)) == "FailJobSet"
    assert action("PodFailurePolicy", message.format(143)) == "RestartJobSetAndIgnoreMaxRestarts"
    evicted = "Pod default/sdft-1 has condition DisruptionTarget matching FailJob rule at index 1"
    assert action("PodFailurePolicy", evicted) == "RestartJobSetAndIgnoreMaxRestarts"
    assert action("BackoffLimitExceeded", "Job has reached the specified backoff limit") == "RestartJobSet"


def test_the_queue_has_quota_for_the_jobset(manifests):
    [group] = manifests["cluster"]["spec"]["resourceGroups"]
    [flavor] = group["flavors"]
    assert flavor["resources"] == [{"name": "google.com/tpu", "nominalQuota": 32}]
    assert flavor["name"] == manifests["flavor"]["metadata"]["name"]
    assert (
        manifests["local"]["metadata"]["name"]
        == manifests["jobset"]["metadata"]["labels"]["kueue.x-k8s.io/queue-name"]
    )


# --- documentation and image ----------------------------------------------------------------------------


def accelerators():
    lines = (LAUNCH / "accelerators.txt").read_text().splitlines()
    return [line.split() for line in lines if not line.startswith("#")]


def test_types_topologies_hosts_and_chips_agree():
    for name, topology, hosts, chips, machine, _, _ in accelerators():
        generation, number = name.split("-")
        total = math.prod(int(side) for side in topology.split("x"))
        assert total == int(hosts) * int(chips), name
        assert int(number) == total * (2 if generation in ("v4", "v5p", "tpu7x") else 1), name
        assert machine.endswith(f"-{chips}t"), name


def test_the_readme_lists_all_types_and_files():
    readme = (LAUNCH / "README.md").read_text()
    rows = [
        f"| {name} | {topology} | {hosts} | {int(hosts) * int(chips)} | {machine} |"
        for name, topology, hosts, chips, machine, *_ in accelerators()
    ]
    assert "\n".join(rows) in readme
    for name in [*LAUNCHERS, "skypilot.yaml", "Dockerfile", "accelerators.txt"]:
        assert f"]({name})" in readme, name


def test_the_files_copied_into_the_image_exist():
    lines = (LAUNCH / "Dockerfile").read_text().splitlines()
    for line in lines:
        if line.startswith("COPY"):
            assert all((ROOT / word).exists() for word in line.split()[1:-1]), line
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    [entry] = [
        json.loads(line.removeprefix("ENTRYPOINT ")) for line in lines if line.startswith("ENTRYPOINT")
    ]
    assert entry[0] in scripts


def update():
    for stale in EXPECTED.glob("*.txt"):
        stale.unlink()
    for name, arguments in DRY_RUNS.items():
        result = dry_run(arguments)
        (EXPECTED / f"{name}.txt").write_text(result.stderr + result.stdout)


if __name__ == "__main__":
    if sys.argv[1:] != ["--update"]:
        sys.exit("usage: python tests/test_launch.py --update")
    update()
