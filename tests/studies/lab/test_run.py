"""Tests of `sdft lab`: names, seeds, reports and published pages, with synthetic results (synthetic.py)."""

import json

import pytest

from sdft_jax import cli
from sdft_jax.errors import SdftError
from sdft_jax.studies.lab import run as lab_run
from sdft_jax.studies.lab.experiments import EXPERIMENTS
from sdft_jax.studies.lab.publish import BEGIN, END
from sdft_jax.studies.lab.run import run
from synthetic import fake_runs


@pytest.fixture
def ran(monkeypatch, tmp_path):
    """A function that runs experiments on synthetic results and returns (reports, trials, directory)."""

    def go(*names, seeds=(0, 1, 2), quick=False, publish=None):
        requested = fake_runs(monkeypatch)
        reports = run(names, str(tmp_path / "out"), seeds, quick, 1, publish)
        return reports, requested, tmp_path / "out" / ("quick" if quick else "full")

    return go


def test_error_for_an_unknown_experiment_lists_the_names(capsys, tmp_path):
    assert cli.main(["lab", "skil", "--output", str(tmp_path)]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "no experiment skil" in message
    assert all(name in message for name in EXPERIMENTS)
    assert not list(tmp_path.iterdir())


def test_reports_are_written_in_order_and_once(ran, capsys):
    reports, _, place = ran("cost", "on-policy", "cost")
    assert [report.name for report in reports] == ["cost", "on-policy"]
    files = {path.name for path in place.iterdir() if path.is_file()}
    assert files == {f"{name}.{end}" for name in ("cost", "on-policy") for end in ("md", "json", "png")}
    assert "seeds 0, 1, 2" in json.loads((place / "on-policy.json").read_text())["measured on"]
    output = capsys.readouterr().out
    assert "SDFT above offline KL on the new skill" in output
    assert "The paper's findings at small scale" in output
    assert "**" not in output


def test_quick_uses_one_seed_and_reports_it(ran):
    _, requested, place = ran("on-policy", seeds=(5, 6, 7), quick=True)
    assert {trial.settings["seed"] for trial in requested if trial.work == "arm"} == {5, 100}
    assert "seeds 5; --quick" in (place / "on-policy.md").read_text()


def test_given_seeds_are_used(ran):
    _, requested, _ = ran("on-policy", seeds=(3, 9))
    assert {trial.settings["seed"] for trial in requested if trial.work == "arm"} == {3, 9, 100}


def test_all_runs_every_experiment(ran, monkeypatch):
    monkeypatch.setattr(lab_run, "write", lambda report, place, caption: place)  # drawing takes seconds
    reports, _, _ = ran("skill", "all", seeds=(0,), quick=True)
    assert [report.name for report in reports] == list(EXPERIMENTS)


def test_publish_replaces_the_text_between_the_markers(ran, tmp_path):
    target = tmp_path / "page"
    target.mkdir()
    page = target / "README.md"
    before, after = "# Results\n\nAn introduction.\n\n", "\n\nAn ending with ![a picture](kept.png).\n"
    page.write_text(f"{before}{BEGIN}\nold numbers\n{END}{after}")
    (target / "kept.png").write_bytes(b"kept")
    ran("on-policy", "cost", publish=str(target))
    text = page.read_text()
    assert text.startswith(before + BEGIN)
    assert text.endswith(END + after)
    assert "old numbers" not in text
    assert text.count("\n## ") == 2
    assert "| [on-policy](#on-policy-or-offline-from-the-same-teacher) | **agrees** |" in text
    assert "## On-policy or offline, from the same teacher\n" in text
    assert {path.name for path in target.iterdir()} == {"README.md", "kept.png", "on-policy.png", "cost.png"}
    assert (target / "kept.png").read_bytes() == b"kept"
    ran("cost", publish=str(target))
    assert page.read_text() == text, "reports of earlier runs remain"


def test_publish_keeps_the_reports_of_other_experiments(ran, tmp_path):
    target, page = tmp_path / "page", tmp_path / "page" / "README.md"
    target.mkdir()
    _, _, place = ran("on-policy", "pass@k", "cost", publish=str(target))
    fresh = page.read_text()
    for report in place.glob("*.json"):
        report.unlink()
    page.write_text(fresh.replace("**agrees**", "**outdated**"))
    ran("pass@k", publish=str(target))
    text = page.read_text()
    assert text.replace("**outdated**", "**agrees**") == fresh
    section = text[text.index("## pass@k") : text.index("## Cost per step")]
    assert "**agrees**" in section
    assert "**outdated**" not in section
    assert "**outdated**" in text.replace(section, "")


def test_publish_writes_a_new_page(ran, tmp_path):
    ran("cost", publish=str(tmp_path))
    text = (tmp_path / "README.md").read_text()
    assert text.startswith(BEGIN)
    assert text.rstrip().endswith(END)


def test_publish_to_a_missing_directory_fails_before_any_trial(ran, tmp_path):
    with pytest.raises(SdftError, match="this directory does not exist"):
        ran("cost", publish=str(tmp_path / "nowhere"))
    assert not (tmp_path / "out").exists()


def test_publish_to_a_page_without_markers_changes_nothing(ran, tmp_path):
    (tmp_path / "README.md").write_text("A page.\n")
    with pytest.raises(SdftError, match="lacks the lines"):
        ran("cost", publish=str(tmp_path))
    assert (tmp_path / "README.md").read_text() == "A page.\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seeds", "-1"], "--seeds -1: give seeds from 0 to 4294967295, each of them once."),
        (["--seeds", "0", "4294967296"], "--seeds 4294967296: give seeds from 0 to"),
        (["--seeds", "0", "1", "0"], "--seeds 0: give seeds from 0 to 4294967295, each of them once."),
        (["--workers", "0"], "--workers 0: give a number from 1 to 256."),
        (["--workers", "-1"], "--workers -1: give a number from 1 to 256."),
        (["--workers", "1000000000"], "--workers 1000000000: give a number from 1 to 256."),
    ],
)
def test_wrong_numbers_are_refused_before_anything_runs(options, message, tmp_path, capsys):
    assert cli.main(["lab", "skill", "--output", str(tmp_path / "out"), *options]) == 2
    assert capsys.readouterr().err.startswith(f"sdft: {message}")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", ["", "[1]", '{"name": 1}', "[" * 10_000])
def test_damaged_report_is_named(ran, tmp_path, content):
    target = tmp_path / "page"
    target.mkdir()
    _, _, place = ran("cost")
    (place / "cost.json").write_text(content)
    with pytest.raises(SdftError, match=r"cost\.json .*: remove it, or run the experiment again\.$"):
        lab_run.write_page(place, str(target))
