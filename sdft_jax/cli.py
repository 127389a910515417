"""The command line: argument parsing, and one function per subcommand."""

from __future__ import annotations

import argparse
import dataclasses
import errno
import importlib.metadata
import os
import sys
import textwrap
import threading
from collections.abc import Callable, Sequence

from sdft_jax.config import Config, load_config
from sdft_jax.config.config import is_setting
from sdft_jax.config.reference import as_help
from sdft_jax.errors import SdftError, reason
from sdft_jax.files import is_utf8
from sdft_jax.reporting.stream import keep_standard_streams
from sdft_jax.training.limits import prepare_limits
from sdft_jax.training.liveness import has_joined, leave, leave_after_exception
from sdft_jax.training.quiet import quiet_libraries
from sdft_jax.training.sigint import end_at_once_on_sigint

DESCRIPTION = (
    "Self-Distillation Fine-Tuning (arXiv 2601.19897): a Hugging Face model in, a Hugging Face model out."
)
EXAMPLES = """\
examples:
  sdft train configs/quickstart.yaml
      train the built-in model on a new skill, in 40 to 100 seconds on 2 CPU cores
  sdft train configs/own-data.yaml model.path=DIR data.path=FILE output=runs/mine
      train your own checkpoint on your demonstrations; the same command resumes a stopped run
  sdft prepare rule desk data/rule
      write the rows of a task, here of one that needs no download; sdft_jax/tasks/README.md has all tasks
  sdft evaluate DIR FILE --task choice data.demonstration=answer
      measure the accuracy of a model, alone and with the demonstration in context
  sdft compare runs/before runs/after --out runs/comparison
      compare two evaluations (sdft evaluate --out DIR) row by row, with McNemar's test
  sdft evaluate DIR --suite prior --out results
      measure prior skills with tasks of lm-eval: hellaswag, mmlu, winogrande and others
  sdft continual configs/continual.yaml
      train three skills in sequence with SDFT and with SFT, and measure what is learned and forgotten
  sdft lab skill --quick
      run one of the paper's experiments at small scale; sdft lab all runs all of them
  sdft bench trl --output runs/bench
      compare the time and memory of a step with TRL's, and write a table, a figure and JSON
  sdft plan configs/qwen2.5-7b-tooluse.yaml --topology v5e-16 --mesh all
      estimate memory, communication and time on every mesh of a TPU slice, without a TPU
  sdft sample DIR "What is the boiling point of water?" -o sampling.temperature=0
  sdft export runs/mine exported-model --best
  sdft export runs/mine exported-model --push me/mine --private

exit codes:
  0    success
  1    internal error, missing processes, or a regression measured by sdft bench
  2    an error that you can fix, as the message explains
  129  stopped by SIGHUP
  130  stopped by SIGINT (Ctrl-C)
  143  stopped by SIGTERM
"""
USER_ERROR = 2
SUITE_OPTIONS = ("include", "num_fewshot", "chat_template", "confirm_run_unsafe_code")
MOST_COMPLETIONS = 10_000
"""Maximum number of completions of a prompt; all are in memory at one time."""


os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # it warns if PyTorch is missing


def main(argv: Sequence[str] | None = None) -> int:
    """Run `sdft`, and return the exit code."""
    quiet_libraries()
    if argv is None:
        keep_standard_streams()
        end_at_once_on_sigint()
    try:
        code = _run(argv)
    except Exception:
        if has_joined():
            leave_after_exception()
        raise
    leave(code)
    if argv is not None:
        return code
    others = [thread for thread in threading.enumerate() if thread is not threading.main_thread()]
    if code == USER_ERROR and any(not thread.daemon for thread in others):
        # Orbax's threads wait minutes for a save that has failed
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _run(argv: Sequence[str] | None) -> int:
    """Run a command, and return the exit code."""
    try:
        _require_text(sys.argv[1:] if argv is None else argv)
        arguments = _parse(argv)
        if argv is None:
            prepare_limits()
        return arguments.command(arguments)
    except SdftError as error:
        print(f"sdft: {error}", file=sys.stderr)
        return USER_ERROR
    except MemoryError as error:
        print(
            f"sdft: this process has no more memory ({reason(error)}): raise its limit (ulimit -v), or use a "
            "smaller batch or model.",
            file=sys.stderr,
        )
        return USER_ERROR
    except Exception as error:
        from sdft_jax.training.checkpoint import storage_reason

        file = getattr(error, "filename2", None) or getattr(error, "filename", None)
        problem = storage_reason(error) or (file and _path_reason(error))
        if not problem:
            raise
        print(
            f"sdft: {file or 'the output'} cannot be read or written ({problem}): fix this and run the "
            "command again.",
            file=sys.stderr,
        )
        return USER_ERROR


def _require_text(words: Sequence[str]) -> None:
    """Raise SdftError for an argument with bytes that the locale's encoding does not have."""
    for word in words:
        if not is_utf8(word):
            raise SdftError(
                f"argument {word!r} has bytes that are not {sys.getfilesystemencoding()}: give it in the "
                "encoding of the locale, or set PYTHONUTF8=1 and give it in UTF-8."
            )


def _path_reason(error: Exception) -> str | None:
    """Return the system's message for a path that is not a file or directory as required."""
    codes = (errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ELOOP, errno.ENAMETOOLONG, errno.EBUSY)
    return os.strerror(error.errno) if isinstance(error, OSError) and error.errno in codes else None


def train(arguments: argparse.Namespace) -> int:
    """Run `sdft train`."""
    config = load_config(arguments.config, arguments.overrides)
    from sdft_jax.commands.train import run

    return _run_until_terminated(run, config)


def continual(arguments: argparse.Namespace) -> int:
    """Run `sdft continual`."""
    config = load_config(arguments.config, arguments.overrides)
    from sdft_jax.commands.continual import run

    return _run_until_terminated(run, config)


def lab(arguments: argparse.Namespace) -> int:
    """Run `sdft lab`."""
    if "real" in arguments.experiments or arguments.model:
        if arguments.experiments != ["real"]:
            raise SdftError(
                "sdft lab real runs alone, and only it takes --model: run the other experiments without it."
            )
        from sdft_jax.studies.lab.real.run import run as run_real

        run_real(arguments.model, arguments.output, arguments.seeds, arguments.quick, arguments.publish)
        return 0
    from sdft_jax.studies.lab.run import run

    run(
        arguments.experiments,
        arguments.output,
        arguments.seeds,
        arguments.quick,
        arguments.workers,
        arguments.publish,
    )
    return 0


def plan(arguments: argparse.Namespace) -> int:
    """Run `sdft plan`."""
    os.environ["JAX_PLATFORMS"] = "cpu"  # nothing runs: an accelerator stays free
    config = load_config(arguments.config, arguments.overrides)
    from sdft_jax.commands.plan import PlanRequest, run

    request = PlanRequest(
        topologies=arguments.topology,
        mesh=arguments.mesh,
        rules=arguments.rules,
        output=arguments.output,
        largest=not arguments.fast,
        price=arguments.price,
    )
    run(config, request)
    return 0


def bench(arguments: argparse.Namespace) -> int:
    """Run `sdft bench`."""
    from sdft_jax.studies.bench import run

    return run(arguments.name, arguments.words)


def evaluate(arguments: argparse.Namespace) -> int:
    """Run `sdft evaluate`."""
    others = ("task", "json") if arguments.suite else SUITE_OPTIONS
    if unused := [name for name in others if getattr(arguments, name)]:
        with_what = "evaluating a FILE" if arguments.suite else "--suite TASK"
        raise SdftError(f"--{unused[0].replace('_', '-')} is an option of {with_what}: remove it.")
    if arguments.suite:
        return _evaluate_suite(arguments)
    words = [word for word in (arguments.file, *arguments.overrides) if word is not None]
    if not words or is_setting(words[0]):
        raise SdftError("sdft evaluate needs a FILE of rows, or --suite TASK: give one of the two.")
    # after the overrides: a YAML file of a task sets eval.path, too
    overrides = [*_limit(arguments), *words[1:], f"model.path={arguments.model}", f"eval.path={words[0]}"]
    if arguments.task:
        overrides.append(f"eval.task={arguments.task}")
    config = load_config(arguments.config, overrides)
    from sdft_jax.commands.evaluate import run
    from sdft_jax.commands.processes import join_processes

    join_processes(config)
    run(config, arguments.json, arguments.out)
    return 0


def compare(arguments: argparse.Namespace) -> int:
    """Run `sdft compare`."""
    from sdft_jax.commands.compare import run

    run(arguments.first, arguments.second, arguments.role, arguments.out)
    return 0


def _evaluate_suite(arguments: argparse.Namespace) -> int:
    """Run `sdft evaluate --suite`."""
    settings = [word for word in (arguments.file, *arguments.overrides) if word is not None]
    if words := [word for word in settings if not is_setting(word)]:
        raise SdftError(
            f"--suite evaluates tasks of lm-eval, not the file {words[0]}: remove one of the two."
        )
    config = load_config(arguments.config, [f"model.path={arguments.model}", *_limit(arguments), *settings])
    from sdft_jax.commands.processes import join_processes
    from sdft_jax.commands.suite import SuiteRequest, run

    join_processes(config)
    request = SuiteRequest(
        names=tuple(name for name in arguments.suite.split(",") if name),
        include=arguments.include,
        output=arguments.out,
        chat_template=arguments.chat_template,
        examples=arguments.num_fewshot,
        unsafe=arguments.confirm_run_unsafe_code,
    )
    run(config, request)
    return 0


def _limit(arguments: argparse.Namespace) -> list[str]:
    """Return the setting of `--limit`."""
    return [] if arguments.limit is None else [f"eval.limit={arguments.limit}"]


def sample(arguments: argparse.Namespace) -> int:
    """Run `sdft sample`."""
    prompts = arguments.prompts or [line for line in _standard_input().split("\n") if line.strip()]
    if not prompts:
        raise SdftError("there is no prompt: give one as an argument, or one per line on stdin.")
    if not 1 <= arguments.n <= MOST_COMPLETIONS:
        raise SdftError(f"-n {arguments.n}: give a number of completions from 1 to {MOST_COMPLETIONS}.")
    for prompt in arguments.prompts:
        if is_setting(prompt):
            raise SdftError(
                f"the prompt {prompt!r} is a setting: give it as -o {prompt}, or give such a prompt on "
                "standard input."
            )
    config = load_config(None, [f"model.path={arguments.model}", *arguments.overrides])
    from sdft_jax.commands.sample import run

    for prompt, completions in zip(prompts, run(config, prompts, arguments.n), strict=True):
        for completion in completions:
            print(f"{prompt}\n  -> {completion}" if len(prompts) > 1 or arguments.n > 1 else completion)
    return 0


def _standard_input() -> str:
    """Return standard input as UTF-8, with or without a byte-order mark. Only a line feed ends a prompt."""
    data = sys.stdin.buffer.read() if hasattr(sys.stdin, "buffer") else sys.stdin.read().encode()
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise SdftError(f"standard input: byte {error.start} is not UTF-8: give prompts in UTF-8.") from None


def export(arguments: argparse.Namespace) -> int:
    """Run `sdft export`."""
    from sdft_jax.commands.export import Request, run

    run(Request(**{field.name: getattr(arguments, field.name) for field in dataclasses.fields(Request)}))
    return 0


def prepare(arguments: argparse.Namespace) -> int:
    """Run `sdft prepare`."""
    if arguments.task == "knowledge":
        return prepare_knowledge(arguments)
    from sdft_jax.commands.prepare import Options, run

    options = Options(hold_out=arguments.hold_out, skip=arguments.skip, tfds=arguments.tfds)
    run(arguments.task, arguments.raw, arguments.directory, options)
    return 0


def prepare_knowledge(arguments: argparse.Namespace) -> int:
    """Run `sdft prepare knowledge`, which also has settings among its arguments."""
    words = [*arguments.raw, arguments.directory]
    settings = [word for word in words if is_setting(word) or word.endswith((".yaml", ".yml"))]
    *articles, out = [word for word in words if word not in settings] or [""]
    if not articles:
        raise SdftError("give articles and a directory: sdft prepare knowledge ARTICLES OUT judge.url=URL.")
    if arguments.hold_out or arguments.skip:
        raise SdftError("task knowledge has no --hold-out or --skip: leave them out.")
    config = load_config(None, settings)
    from sdft_jax.commands.prepare_knowledge import run

    run(articles, out, config, arguments.tfds)
    return 0


def _run_until_terminated(run: Callable[[Config], object], config: Config) -> int:
    from sdft_jax.commands.processes import run_until_terminated

    return run_until_terminated(run, config)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the arguments; overrides and prompts may precede or follow options, unlike in plain argparse."""
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    if rest and (
        arguments.command not in (train, continual, evaluate, plan, sample)
        or any(text.startswith("-") for text in rest)
    ):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest and arguments.command is sample:
        arguments.prompts += rest
    elif rest:
        arguments.overrides += rest
    return arguments


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sdft",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"sdft_jax {_version()}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    keys = "keys of CONFIG and of key=value overrides:\n\n" + textwrap.indent(as_help(), "  ")

    def add(name, function, summary, epilog=keys):
        command = commands.add_parser(
            name,
            help=summary,
            description=summary,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.set_defaults(command=function)
        return command

    command = add("train", train, "train a model with SDFT or a baseline method, or resume a run")
    command.add_argument("config", metavar="CONFIG", help="YAML file, such as configs/quickstart.yaml")
    _add_overrides(command, "train.batch_size=16")

    command = add(
        "continual",
        continual,
        "train a model on a sequence of stages with several methods, and measure forgetting",
    )
    command.add_argument("config", metavar="CONFIG", help="YAML file, such as configs/continual.yaml")
    _add_overrides(command, "continual.seeds=[0,1,2]")

    _add_lab(commands)
    _add_bench(commands)

    _add_plan(
        add(
            "plan",
            plan,
            "estimate the memory and time of an update on a TPU topology with the TPU compiler, without a "
            "TPU",
        )
    )

    _add_prepare(commands)

    _add_evaluate(
        add(
            "evaluate",
            evaluate,
            "measure the accuracy of a model, alone and with the demonstration in context",
        )
    )
    _add_compare(
        add("compare", compare, "compare two evaluations of the same rows, paired row by row", epilog=None)
    )

    _add_sample(
        add("sample", sample, "sample completions of prompts, formatted with the model's chat template")
    )
    _add_export(add("export", export, "write a run's checkpoint as a Hugging Face directory", epilog=None))
    return parser


def _version() -> str:
    try:
        return importlib.metadata.version("sdft_jax")
    except importlib.metadata.PackageNotFoundError:  # a checkout on PYTHONPATH
        return "(not installed)"


def _add_overrides(command: argparse.ArgumentParser, example: str) -> None:
    command.add_argument(
        "overrides",
        metavar="key=value",
        nargs="*",
        default=[],
        help=f"such as {example}, or a further YAML file, such as configs/tasks/science.yaml",
    )


def _add_evaluate(command: argparse.ArgumentParser) -> None:
    """Add the arguments of `sdft evaluate`."""
    command.add_argument("model", metavar="MODEL", help="Hugging Face directory, Hub name or run directory")
    command.add_argument(
        "file", metavar="FILE", nargs="?", help="JSONL or Parquet file, dataset directory or name, tfds:NAME"
    )
    _add_overrides(command, "eval.limit=100")
    command.add_argument("--task", help="scorer, as eval.task")
    command.add_argument("--config", help="YAML file to start from")
    command.add_argument(
        "--limit", type=int, metavar="N", help="number of rows of FILE, or of each task; as eval.limit"
    )
    command.add_argument(
        "--out",
        metavar="DIR",
        help="directory of every answer and of the numbers; the same command resumes the evaluation",
    )
    command.add_argument(
        "--json", metavar="FILE", help="also write a JSON line per row to this file, at the end"
    )
    _add_suite(command)


def _add_sample(command: argparse.ArgumentParser) -> None:
    """Add the arguments of `sdft sample`."""
    command.add_argument("model", metavar="MODEL", help="Hugging Face directory, Hub name or run directory")
    command.add_argument(
        "prompts", metavar="PROMPT", nargs="*", default=[], help="user messages; default: each line of stdin"
    )
    command.add_argument("-n", type=int, default=1, help="number of completions of each prompt")
    command.add_argument(
        "-o",
        dest="overrides",
        metavar="key=value",
        action="append",
        default=[],
        help="such as sampling.temperature=0.7; may be repeated",
    )


def _add_compare(command: argparse.ArgumentParser) -> None:
    """Add the arguments of `sdft compare`."""
    command.add_argument("first", metavar="A", help="directory of sdft evaluate --out, or its answers.jsonl")
    command.add_argument("second", metavar="B", help="the same of another model, on the same rows")
    command.add_argument(
        "--role", choices=["student", "teacher"], default="student", help="answers to compare (student)"
    )
    command.add_argument(
        "--out",
        metavar="DIR",
        help="also write comparison.html (the answers that changed) and comparison.json",
    )


def _add_export(command: argparse.ArgumentParser) -> None:
    """Add the arguments of `sdft export`."""
    command.add_argument("run", metavar="RUN", help="output directory of a run")
    command.add_argument("directory", metavar="DIR", help="directory to write")
    command.add_argument(
        "--best", action="store_true", help="use the checkpoint with the best score instead of the newest"
    )
    command.add_argument(
        "--dtype",
        choices=["float32", "bfloat16", "float16"],
        help="dtype of the tensors; default: as in the source model, or in the adapters",
    )
    command.add_argument(
        "--merge",
        action="store_true",
        help="write a run with adapters as a plain checkpoint, instead of the adapters alone for PEFT",
    )
    command.add_argument(
        "--base",
        metavar="NAME",
        help="name of the base model on the Hub, if model.path is a local copy of it",
    )
    command.add_argument("--push", metavar="NAME", help="also upload the model to the Hub; needs a login")
    command.add_argument("--private", action="store_true", help="upload to a private repository")


def _add_suite(command: argparse.ArgumentParser) -> None:
    """Add the arguments of `sdft evaluate --suite`."""
    group = command.add_argument_group("tasks of lm-eval (pip install 'sdft_jax[suite]')")
    group.add_argument(
        "--suite",
        metavar="TASK,...",
        help="evaluate these tasks of lm-eval instead of FILE; prior is hellaswag, mmlu, truthfulqa_mc1, "
        "truthfulqa_mc2, winogrande, humaneval and ifeval",
    )
    group.add_argument("--include", metavar="DIR", help="directory with YAML files of your own tasks")
    group.add_argument("--num-fewshot", type=int, metavar="N", help="number of examples in a prompt")
    group.add_argument(
        "--chat-template", action="store_true", help="format prompts with the model's chat template"
    )
    group.add_argument(
        "--confirm-run-unsafe-code", action="store_true", help="allow tasks that run code of the model"
    )


def _add_prepare(commands: argparse._SubParsersAction) -> None:
    """Add `sdft prepare`, which needs no configuration."""
    from sdft_jax.tasks import TASKS

    tasks = "\n".join(f"  {name:<12} {task.description}" for name, task in TASKS.items())
    command = commands.add_parser(
        "prepare",
        help="convert the files of a released data set to rows for training and evaluation",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Convert the files of a released data set to rows, with checksums; "
        "sdft_jax/tasks/README.md describes each task.\nThe task knowledge also takes settings, such as "
        "judge.url=URL; sdft_jax/evaluation/JUDGE.md describes it.",
        epilog=f"tasks:\n{tasks}",
    )
    command.set_defaults(command=prepare)
    command.add_argument("task", metavar="TASK", help="name of a task")
    command.add_argument(
        "raw",
        metavar="RAW",
        nargs="+",
        help="raw files or directories: to train, then to test; or SPLIT=PATH; or a directory with both",
    )
    command.add_argument("directory", metavar="OUT", help="directory to write")
    command.add_argument(
        "--hold-out",
        type=int,
        default=0,
        metavar="N",
        help="move N prompts from the rows to train to a test set",
    )
    command.add_argument(
        "--skip", action="store_true", help="leave out rows that cannot be converted, and count them"
    )
    command.add_argument(
        "--tfds", action="store_true", help="write ArrayRecord files for TFDS instead of JSON lines"
    )


def _add_plan(command: argparse.ArgumentParser) -> None:
    """Add the arguments of `sdft plan`."""
    command.add_argument("config", metavar="CONFIG", help="YAML file; the model's weights are not needed")
    _add_overrides(command, "train.batch_size=64")
    command.add_argument(
        "--topology",
        action="append",
        required=True,
        metavar="NAME",
        help="TPU topology, such as v5e:4x4 or v5e-16; may be repeated",
    )
    command.add_argument(
        "--mesh", help="data=N,fsdp=N,tensor=N,expert=N (one may be -1), or all; default: as in CONFIG"
    )
    command.add_argument(
        "--rules", nargs="+", default=[], metavar="FILE", help="YAML files of sharding rules to compare"
    )
    command.add_argument(
        "--output", metavar="DIR", help="also write plan.json and plan.png to this directory"
    )
    command.add_argument(
        "--fast",
        action="store_true",
        help="do not search for the largest batch, and do not compile the advice",
    )
    command.add_argument(
        "--price", type=float, metavar="DOLLARS", help="price of a chip per hour; default: the list price"
    )


def _add_lab(commands: argparse._SubParsersAction) -> None:
    """Add `sdft lab`, which needs no configuration."""
    from sdft_jax.studies.lab.experiments import EXPERIMENTS

    experiments = "\n".join(f"  {name:<12} {summary}" for name, (_, summary) in EXPERIMENTS.items())
    command = commands.add_parser(
        "lab",
        help="run the paper's experiments at small scale",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Run the paper's experiments on built-in models; finished trials are reused.",
        epilog=f"experiments:\n{experiments}\n"
        "  real         on a pretrained model (--model): a rule, a tool format, facts; not part of all",
    )
    command.set_defaults(command=lab)
    command.add_argument("experiments", metavar="EXPERIMENT", nargs="+", help="names, or all, or real alone")
    command.add_argument("--model", metavar="DIR", help="real: Hugging Face directory or name of the model")
    command.add_argument("--quick", action="store_true", help="one seed and fewer steps, as a quick check")
    command.add_argument(
        "--seeds",
        type=int,
        nargs="+",
        default=[0, 1, 2],
        help="seeds of data order and sampling (default: 0 1 2)",
    )
    command.add_argument(
        "--output", default="runs/lab", help="directory of trials and reports (default: runs/lab)"
    )
    command.add_argument("--workers", type=int, help="number of processes; default: one per CPU core")
    command.add_argument(
        "--publish",
        metavar="DIR",
        help="also write the tables to DIR/README.md (real: DIR/REAL.md), and the figures to DIR",
    )


def _add_bench(commands: argparse._SubParsersAction) -> None:
    """Add `sdft bench`; each measurement parses its own options, which follow its name."""
    from sdft_jax.studies.bench import BENCHES

    measurements = "\n".join(f"  {name:<12} {summary}" for name, summary in BENCHES.items())
    command = commands.add_parser(
        "bench",
        help="measure speed and memory against a peer or a physical limit",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Measure against a named peer or a physical limit in the same run; "
        "sdft bench NAME --help lists the options.",
        epilog=f"measurements:\n{measurements}",
    )
    command.set_defaults(command=bench)
    command.add_argument("name", metavar="NAME", choices=list(BENCHES), help="name of a measurement")
    command.add_argument(
        "words", metavar="...", nargs=argparse.REMAINDER, help="options, such as --output DIR"
    )


if __name__ == "__main__":
    sys.exit(main())
