"""Every Python that we support and that is on the PATH by its name reads the source, and shows each program's help."""

import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from tests.packages.conftest import environment

PROJECT = Path(__file__).parents[2]
METADATA = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
VERSIONS = ("3.11", "3.12", "3.13", "3.14")
COMPILE_ALL = """
import pathlib, sys, warnings
warnings.simplefilter("error")
for package in sys.argv[1:]:
    for file in pathlib.Path(package).rglob("*.py"):
        compile(file.read_bytes(), str(file), "exec")
"""
HELP = """
import importlib, sys
module, _, name = sys.argv[1].partition(":")
sys.argv = [sys.argv[1], "--help"]
getattr(importlib.import_module(module), name)()
"""
PROGRAMS = METADATA["scripts"].values()


def run(python: Path | str, *words: str, folder: Path = PROJECT) -> subprocess.CompletedProcess[str]:
    return subprocess.run([python, *words], capture_output=True, text=True, cwd=folder, timeout=300, check=False)


@pytest.fixture(params=VERSIONS)
def python(request: pytest.FixtureRequest) -> str:
    """The path of that Python."""
    name = f"python{request.param}"
    found = shutil.which(name)
    # A version manager puts names on the PATH behind which there is nothing.
    if found is None or run(found, "-c", "").returncode:
        pytest.skip(f"{name}: not installed")
    return found


def test_it_reads_the_source(python: str) -> None:
    done = run(python, "-c", COMPILE_ALL, "fleet", "device_agent", "firmware_tools", "hw_bench", "tests")
    assert done.returncode == 0, done.stderr


def test_every_program_shows_its_help(python: str) -> None:
    if run(python, "-c", "import click, cryptography, aiohttp, OpenSSL, cbor2, paho.mqtt, serial, asyncpg").returncode:
        pytest.skip(f"{Path(python).name}: has not what the programs need")
    for entry in PROGRAMS:
        done = run(python, "-c", HELP, entry)
        assert (done.returncode, "Usage:" in done.stdout) == (0, True), (entry, done.stdout, done.stderr)


@pytest.mark.long
def test_every_program_shows_its_help_in_an_environment_of_that_python(
    python: str, wheel: Path, tmp_path: Path
) -> None:
    inside = environment(python, tmp_path / "environment", f"{wheel}[all]")
    for entry in PROGRAMS:
        done = run(inside, "-I", "-W", "error::DeprecationWarning:fleet", "-c", HELP, entry, folder=tmp_path)
        assert (done.returncode, "Usage:" in done.stdout) == (0, True), (entry, done.stdout, done.stderr)


def test_the_versions_are_those_that_the_project_promises() -> None:
    assert METADATA["requires-python"] == f">={VERSIONS[0]}"
