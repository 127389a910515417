"""`sdft evaluate`: the answers of a model to the rows of a file, their verdicts, and the numbers of both."""

from __future__ import annotations

import contextlib
import functools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sdft_jax.algorithm import check_rows
from sdft_jax.config import Config, sharding_from
from sdft_jax.data.encoding import PromptFormat
from sdft_jax.errors import SdftError
from sdft_jax.evaluation.answer_log import (
    ANSWERS,
    SUMMARY,
    AnswerLog,
    Record,
    as_record,
    claim,
    name_of,
    new_log,
    open_log,
    refuse_other_rows,
)
from sdft_jax.evaluation.completions import SAMPLED, Role, complete, requested_roles
from sdft_jax.evaluation.eval_set import EvalSet, encode_eval, read_eval
from sdft_jax.evaluation.grading import fault_note, is_judged, scorer_name
from sdft_jax.evaluation.scoring import score_log
from sdft_jax.evaluation.summary import (
    LENGTHS,
    bucket_rows,
    decision_rows,
    role_rows,
    sample_rows,
    summarize,
)
from sdft_jax.files import json_line, refuse_source, write_errors, write_text
from sdft_jax.plan.footprint import answer_arrays, widths_of
from sdft_jax.reporting.reporter import Reporter, process_reporter
from sdft_jax.reporting.tables import summary_table
from sdft_jax.training.export import (
    load_prompt_format,
    load_reference_of,
    load_speaker,
    speaker_digests,
    with_template_arguments,
)
from sdft_jax.training.inputs import template_digest
from sdft_jax.training.lock import locked
from sdft_jax.training.out_of_memory import explained
from sdft_jax.training.processes import agreed, require_same, together


def run(config: Config, file: str | None = None, out: str | None = None) -> dict[str, Any]:
    """Evaluate the student, and the roles that `eval` adds; print tables, and return their numbers.

    All processes answer; process 0 scores, prints, writes and returns.

    Args:
        config: its `eval` section selects the rows, the roles and the task.
        file: the file to write one JSON line per row to, with answers and verdicts; None for no file.
        out: the directory of the evaluation. Answers that it has are not made again, nor are verdicts, unless
            the scorer or the reference answer has changed, or the scorer had failed. None for no directory.

    Raises:
        SdftError: a mistake in the configuration or the rows, another evaluation in the directory, or out of
            memory.
    """
    reporter = process_reporter()
    if file:
        _check_writable(Path(file))
    if config.eval.path is None:
        raise SdftError("eval.path is not set: set it to a file of prompts with answers.")
    if file:
        refuse_source(file, [config.eval.path], "give another file")
    check_rows(config.eval.batch_size, "eval.batch_size", sharding_from(config))
    roles = requested_roles(config)
    config = together(functools.partial(with_template_arguments, config))
    rows, format = together(functools.partial(_load, config))
    require_same({"the evaluation rows": len(rows.encoded)}, "with the same data")
    keys = [(role.name, *x.id, n) for role in roles for x in rows.examples for n in range(role.samples)]
    with contextlib.ExitStack() as stack:
        opened = _opened(out if reporter.writes else None, config, format, rows, reporter)
        log = together(lambda: stack.enter_context(opened))
        _answer(log, rows, config, format, reporter)
        if not reporter.writes:
            return {}
        track = functools.partial(reporter.track, description="scoring")
        faults = score_log(log, rows, config, keys, track)
    records = [log.records[key] for key in keys]
    summary: dict[str, Any] = {"model": config.model.path, "rows": config.eval.path, "task": config.eval.task}
    summary |= {"scorer": scorer_name(config), "dropped": rows.dropped.total, **summarize(records)}
    _print(reporter, config, summary, rows)
    for role in roles:
        if reasons := decision_rows([record for record in records if record["role"] == role.name]):
            reporter.print(summary_table(reasons, f"{role.name}: what decided"))
    again = ["The same command scores them again."] if faults and out and not is_judged(config) else []
    reporter.print(*fault_note(faults, config), *again)
    if out:
        write_text(Path(out) / SUMMARY, json.dumps(summary, indent=1, ensure_ascii=False) + "\n")
        reporter.print(f"answers  {Path(out) / ANSWERS}", f"summary  {Path(out) / SUMMARY}")
    if file:
        with write_errors(file, "fix this, or give another file, and run the command again"):
            _write(Path(file), records)
    if faults and is_judged(config):
        raise SdftError("some answers have no grade yet: run the command again when the judge is available.")
    return summary


def _load(config: Config) -> tuple[EvalSet, PromptFormat]:
    """Return the rows, and the prompt format of the model."""
    examples = read_eval(str(config.eval.path), config, config.eval.teacher)
    format = load_prompt_format(config)
    return encode_eval(examples, config, format, config.eval.teacher), format


@contextlib.contextmanager
def _opened(
    out: str | None, config: Config, format: PromptFormat, rows: EvalSet, reporter: Reporter
) -> Iterator[AnswerLog]:
    """Open the answers in a directory, which only this process may write to; None for no directory."""
    if out is None:
        yield new_log()
        return
    directory = Path(out)
    if "://" in out:
        raise SdftError(
            f"--out {out} is in a bucket, where answers cannot be appended: give a local directory."
        )
    if directory.exists() and not directory.is_dir():
        raise SdftError(f"--out {out} is a file: give a directory, or write one file with --json FILE.")
    roles = requested_roles(config)
    claim(directory, {"settings": _settings(config, roles), "digests": _digests(config, format)})
    with contextlib.ExitStack() as stack:
        with write_errors(directory, "fix this, or give another --out"):
            stack.enter_context(locked(out, False, "--out "))
        log = stack.enter_context(open_log(directory, reporter.print))
        refuse_other_rows(log, directory, rows, roles)
        yield log


def _settings(config: Config, roles: Sequence[Role]) -> dict[str, Any]:
    """Return the settings that determine the answers; placement and batches do not."""
    settings: dict[str, Any] = {
        "model.param_dtype": config.model.param_dtype,
        "model.compute_dtype": config.model.compute_dtype,
        "lora.quantize": config.lora.quantize,
        "data.template_kwargs": dict(config.data.template_kwargs),
        "data.control_tokens": config.data.control_tokens,
        "data.thoughts": config.data.thoughts,
        "eval.max_new_tokens": roles[0].sampling.max_new_tokens,
    }
    if config.eval.teacher:
        settings["data.teacher_template_kwargs"] = dict(config.data.teacher_template_kwargs)
    for role in (role for role in roles if role.name == SAMPLED):
        sampling = role.sampling
        settings |= {"eval.temperature": sampling.temperature, "eval.top_p": sampling.top_p}
        settings |= {"sampling.top_k": sampling.top_k, "sampling.min_p": sampling.min_p}
        settings["train.seed"] = role.seed
    return settings


def _digests(config: Config, format: PromptFormat) -> dict[str, str]:
    """Return the digests of the files that determine the answers, except the rows, by their names."""
    return speaker_digests(config, format) | (template_digest(format) if config.eval.teacher else {})


def _answer(log: AnswerLog, rows: EvalSet, config: Config, format: PromptFormat, reporter: Reporter) -> None:
    """Add the answers that the log does not have; the model is read only if there are any."""
    index = {example.id: i for i, example in enumerate(rows.examples)}
    stored: list[Any] = agreed([list(key) for key in log.records])
    roles = []
    for role in requested_roles(config):
        done = {(index[row, turn], sample) for name, row, turn, sample in stored if name == role.name}
        if len(rows.examples) * role.samples > sum(sample < role.samples for _, sample in done):
            roles.append((role, done))
    if not roles:
        return
    speaker = load_speaker(config, format)
    base = load_reference_of(speaker, config)
    count = functools.partial(
        answer_arrays, widths=widths_of(rows.encoded), training=False, base=base is not None
    )
    with explained("the evaluation", config, speaker.model, count):
        for role, done in roles:
            track = functools.partial(reporter.track, description=role.name)
            for batch in complete(speaker, rows, config, role, base=base, done=done, track=track):
                log.add(as_record(role, completion, rows) for completion in batch)


def _print(reporter: Reporter, config: Config, summary: Mapping[str, Any], rows: EvalSet) -> None:
    reporter.print(summary_table(role_rows(summary), f"{config.eval.path}, scored by {scorer_name(config)}"))
    if samples := sample_rows(summary):
        (role,) = (role for role in requested_roles(config) if role.name == SAMPLED)
        sampling = role.sampling
        reporter.print(
            f"\n{role.samples} samples of each row at temperature {sampling.temperature:g}, top-p "
            f"{sampling.top_p:g}; the intervals are a bootstrap over rows",
            summary_table(samples, "pass@k"),
        )
    for title in LENGTHS:
        if len(buckets := bucket_rows(summary, title)) > 1:
            reporter.print("", summary_table(buckets, f"accuracy by {title}"))
    if changes := summary.get("demonstration"):
        reporter.print(
            f"\nwith the demonstration, {changes['gained']} rows become right and {changes['lost']} become "
            f"wrong (McNemar's exact test: p = {changes['p']:.2g})"
        )
    if rows.dropped.total:
        reporter.print(f"dropped {rows.dropped.total} rows: {rows.dropped}")


def _check_writable(file: Path) -> None:
    """Raise SdftError, before the work, if a file cannot be written."""
    if not file.absolute().parent.is_dir():
        raise SdftError(
            f"{file} cannot be written, since its directory does not exist: create the directory first."
        )
    if file.is_dir():
        raise SdftError(f"{file} is a directory: give the name of a file, or --out {file}.")
    if not os.access(file if file.exists() else file.absolute().parent, os.W_OK):
        raise SdftError(f"{file} cannot be written (Permission denied): give another file.")


def _write(file: Path, records: Sequence[Record]) -> None:
    """Write one JSON line per row or turn: the greedy answer of each role, and a list of the sampled ones."""
    lines: dict[str, dict[str, Any]] = {}
    for record in records:
        named = {name: record[name] for name in ("row", "turn", "answer")}
        if named["turn"] is None:
            del named["turn"]
        line = lines.setdefault(name_of(record), named)
        answer = {"completion": record["completion"], "correct": record["correct"]}
        optional = ("partly", "decided_by", "fault")
        answer |= {name: record[name] for name in optional if record.get(name) is not None}
        if record["role"] == SAMPLED:
            line.setdefault(SAMPLED, []).append(answer)
        else:
            line[record["role"]] = answer
    text = "".join(map(json_line, lines.values()))
    if file.exists() and not (file.is_file() and os.access(file.absolute().parent, os.W_OK)):
        file.write_text(text, encoding="utf-8")  # such as /dev/stdout, which cannot be replaced
    else:
        write_text(file, text)
