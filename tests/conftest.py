"""Eight virtual CPU devices, no accelerator, strict broadcasting; XLA compiles fast rather than well."""

import contextlib
import gc
import os
import signal
from importlib.metadata import version
from pathlib import Path

JAXLIB = tuple(map(int, version("jaxlib").split(".")[:2]))
# Tests compile much and run little: without optimisation an update compiles in 3 s instead of 20 s.
FAST_COMPILATION = [
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_parallel_codegen_split_count=1",  # both cores are busy, and splitting a module takes time
    *(["--xla_cpu_use_fusion_emitters=false"] if JAXLIB == (0, 10) else []),
]
DEVICES = "--xla_force_host_platform_device_count=8"
# On a busy machine, devices may begin a collective further apart than 40 s, at which XLA ends the process.
PATIENCE = ["--xla_cpu_collective_call_terminate_timeout_seconds=300"] if JAXLIB >= (0, 9) else []
# A device may wait in several collectives at once, each in a thread. With one thread for each device, as XLA
# has them on machines with few cores, all may wait, and none is left for the device that they wait for.
THREADS = "64"

# Tracing makes many objects and little garbage: at Python's own threshold, a tenth of its time is collection.
gc.set_threshold(50_000, 10, 10)

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = " ".join(
    [os.environ.get("XLA_FLAGS", ""), DEVICES, *FAST_COMPILATION, *PATIENCE]
).strip()
os.environ["NPROC"] = THREADS
os.environ["HF_HUB_OFFLINE"] = "1"
for _ignored, _usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(_ignored) is signal.SIG_IGN:  # as in a job in the background, or under nohup
        signal.signal(_ignored, _usual)
os.environ.pop("COLUMNS", None)  # pytest-xdist sets it; tables are then as wide as their content
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import jax  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")

# The shapes and dtypes in the signatures of these modules are checked at every call, that is, while tracing.
# types and state are not in the list: their dataclasses also hold shardings and shapes instead of arrays.
CHECKED = (
    "algorithm.accumulate",
    "algorithm.chunked_loss",
    "algorithm.divergence",
    "algorithm.imitation",
    "algorithm.rollout",
    "algorithm.teacher",
    "algorithm.token_weights",
    "algorithm.update",
    "evaluation.generation",
    "evaluation.loglikelihood",
    "kernels.argmax",
    "kernels.attention",
    "kernels.fused_attention",
    "kernels.matmul",
    "sampling.decode",
    "sampling.keys",
    "sampling.token_choice",
)

from jaxtyping import install_import_hook  # noqa: E402

install_import_hook([f"sdft_jax.{module}" for module in CHECKED], "beartype.beartype")

import pytest  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402
from jax.experimental.compilation_cache import compilation_cache as jax_cache  # noqa: E402

settings.register_profile(
    "few", derandomize=True, deadline=None, database=None, max_examples=60, suppress_health_check=HealthCheck
)
settings.register_profile("campaign", settings.get_profile("few"), derandomize=False, max_examples=5000)
settings.load_profile("few")


LONGEST = (
    "training/test_processes.py",
    "training/test_loop.py",
    "algorithm/test_update.py",
    "test_notebooks.py",
    "sampling/test_decode.py",
    "models/test_quantize.py",
    "continual/test_arms.py",
    "studies/bench/test_startup.py",
    "plan/test_advice.py",
    "studies/bench/test_tpu.py",
    "studies/lab/real/test_run.py",
)
"""The files that take longest, which start first: near the end, one worker would wait for another."""


def pytest_collection_modifyitems(items):
    order = {Path(__file__).parent / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path, len(order)))


@pytest.fixture(scope="session", autouse=True)
def torch_of_this_process_only():
    """Hide torch from transformers in the processes that tests start: its import takes two seconds there.

    The directory also has a `sitecustomize.py`, which collects their garbage as rarely as that of this one.
    """
    hiding = str(Path(__file__).parent / "fixtures" / "without_torch")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", hiding, prepend=os.pathsep)
        patch.setenv("USE_TORCH", "0")  # read by datasets
        yield


@pytest.fixture(scope="session")
def caches(tmp_path_factory):
    """A directory of compilation caches, shared by all runs of the session, in all of its processes."""
    base = tmp_path_factory.getbasetemp()
    directory = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "caches"
    directory.mkdir(exist_ok=True)
    return directory


@pytest.fixture(scope="module", autouse=True)
def no_user_cache(tmp_path_factory):
    """Keep the compilation cache that a command enables out of the home directory, and disable it after the
    module.
    """
    before = jax.config.jax_compilation_cache_dir
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "home"))
        yield
    if jax.config.jax_compilation_cache_dir != before:
        jax.config.update("jax_compilation_cache_dir", before)
        jax_cache.reset_cache()


MOST_MAPS = 20_000
"""Number of memory maps of a process above which compiled programs are released; Linux allows 65,530."""


@pytest.fixture(scope="module", autouse=True)
def released_programs():
    """Release compiled programs after a module if there are many: those of all modules would exhaust the
    memory maps of the process, and compiling would then end it with a segmentation fault.
    """
    yield
    maps = Path("/proc/self/maps")
    if not maps.exists() or len(maps.read_bytes().splitlines()) > MOST_MAPS:
        jax.clear_caches()


@contextlib.contextmanager
def sharing_compilations(caches):
    """Share compiled programs with other processes, through the disk."""
    settings = {
        "jax_compilation_cache_dir": str(caches / "jax"),
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    for values in (settings, before):
        for name, value in values.items():
            jax.config.update(name, value)
        jax_cache.reset_cache()
        if values is settings:
            yield


@pytest.fixture(scope="module")
def shared_compilations(caches):
    """Share compiled programs between the runs of a module and those of other processes."""
    with sharing_compilations(caches):
        yield


@pytest.fixture(scope="session")
def tiny_directory(tmp_path_factory):
    """A Hugging Face directory with a random model and the tokenizer of the mini world."""
    from runs import write_model

    directory = tmp_path_factory.mktemp("tiny") / "model"
    write_model(directory)
    return directory


@pytest.fixture(scope="session")
def finished(tmp_path_factory, tiny_directory, caches):
    """The output of an uninterrupted `sdft train` with a baseline; a test that changes it makes a copy."""
    from runs import write_config
    from sdft_jax import cli

    directory = tmp_path_factory.mktemp("finished")
    config = write_config(
        directory / "config.yaml", tiny_directory, directory / "run", "baseline=true", "train.phases_every=4"
    )
    with sharing_compilations(caches):
        assert cli.main(["train", config]) == 0
    return directory / "run"


@pytest.fixture(scope="session")
def half_directory(tmp_path_factory, tiny_directory):
    """The same model, stored as bfloat16."""
    from sdft_jax.models import load_model, save_pretrained

    directory = tmp_path_factory.mktemp("half") / "model"
    save_pretrained(*load_model(tiny_directory), None, directory, dtype="bfloat16")
    return directory


@pytest.fixture(scope="session")
def adapter_directories(tmp_path_factory, tiny_directory):
    """(adapter of rank 4 for the model in `tiny_directory`, the model that it is merged into)."""
    from sdft_jax.models import load_model, save_pretrained
    from sdft_jax.models.hf.adapter import save_adapter
    from tiny import adapted

    directory = tmp_path_factory.mktemp("adapters")
    model, params = adapted(*load_model(tiny_directory))
    save_adapter(model, params, directory / "adapter", "owner/base")
    save_pretrained(model, params, None, directory / "merged")
    return directory / "adapter", directory / "merged"


@pytest.fixture(scope="session")
def finished_sequence(tmp_path_factory, half_directory, caches):
    """A directory with `run`, the output of `sdft continual`, and `alone`, its copy before arms were
    added.
    """
    import shutil

    from runs import sequence_settings, write_config
    from sdft_jax import cli

    directory = tmp_path_factory.mktemp("sequence")
    config = write_config(
        directory / "config.yaml", half_directory, directory / "run", *sequence_settings(directory)
    )
    with sharing_compilations(caches):
        assert cli.main(["continual", config]) == 0
        shutil.copytree(directory / "run", directory / "alone")
        assert cli.main(["continual", config, "continual.methods=[sdft,joint,oracle]"]) == 0
    return directory


@pytest.fixture
def compiled_once(monkeypatch):
    """Compile each program for TPUs once in a test: the results do not depend on the memory of the chip."""
    from sdft_jax.plan import estimate

    compile, programs = estimate._compile, {}

    def compile_once(lowered):
        text = lowered.as_text()
        if text not in programs:
            programs[text] = compile(lowered)
        return programs[text]

    monkeypatch.setattr(estimate, "_compile", compile_once)


@pytest.fixture(scope="session")
def bucket_environment():
    """The environment of a process in which gs://bucket is on a server of this process, in memory."""
    pytest.importorskip("gcsfs")
    server = pytest.importorskip("gcp_storage_emulator.server").create_server(
        "127.0.0.1", 0, in_memory=True, default_bucket="bucket"
    )
    server.start()
    host, port = server._api._httpd.socket.getsockname()
    yield os.environ | {"STORAGE_EMULATOR_HOST": f"http://{host}:{port}", "NO_GCE_CHECK": "true"}
    server.stop()


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A server that plays the Hugging Face Hub, which the Hub's client uses with a valid token."""
    import threading

    from huggingface_hub import constants

    from fake_hub import FakeHub

    server = FakeHub()
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.removeprefix(constants.ENDPOINT)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + template)
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True, raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setenv("HF_TOKEN", server.token)
    yield server
    server.shutdown()
    server.server_close()
