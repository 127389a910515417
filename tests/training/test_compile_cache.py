"""Compiled programs are cached below the user's cache directory, unless another cache is configured."""

import platform
import pwd

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache as jax_cache

from sdft_jax.training.compile_cache import enable_compile_cache

EAGER = {"jax_persistent_cache_min_compile_time_secs": 0, "jax_persistent_cache_min_entry_size_bytes": -1}


@pytest.fixture(autouse=True)
def no_cache_yet(monkeypatch):
    """Disable the cache before a test, and restore JAX's settings after it."""
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    before = {name: getattr(jax.config, name) for name in ("jax_compilation_cache_dir", *EAGER)}
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    jax_cache.reset_cache()


def test_programs_are_written_to_a_directory_of_this_host(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name, value in EAGER.items():
        jax.config.update(name, value)
    enable_compile_cache()
    jax_cache.reset_cache()
    jax.jit(lambda x: x * 3 + 0.12345)(jnp.ones(7)).block_until_ready()
    programs = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert programs
    assert all(path.parent == tmp_path / "sdft_jax" / platform.node() for path in programs)


def test_cache_is_in_the_home_directory_by_default(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    enable_compile_cache()
    assert jax.config.jax_compilation_cache_dir == f"{tmp_path}/.cache/sdft_jax/{platform.node()}"


@pytest.mark.parametrize("directory", ["", "/somewhere"])
def test_setting_of_the_environment_is_not_changed(directory, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", directory)
    enable_compile_cache()
    assert jax.config.jax_compilation_cache_dir is None


def test_setting_of_the_program_is_not_changed(tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    enable_compile_cache()
    assert jax.config.jax_compilation_cache_dir == str(tmp_path)


def test_user_without_a_home_directory_has_no_cache(monkeypatch, capsys):
    def unknown(number):
        raise KeyError(number)

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.delenv("HOME")
    monkeypatch.delenv("XDG_CACHE_HOME")
    enable_compile_cache()
    assert jax.config.jax_compilation_cache_dir is None
    assert capsys.readouterr().err == (
        "sdft: compiled programs are not kept for later runs: this user has no home directory: set "
        "XDG_CACHE_HOME to a directory.\n"
    )


@pytest.mark.parametrize("home", ["/proc/home", "/dev/null"])
def test_directory_that_cannot_be_written_is_named(home, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", home)
    enable_compile_cache()
    assert jax.config.jax_compilation_cache_dir is None
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("sdft: compiled programs are not kept for later runs: ")
    assert home in line
