"""What is published: a wheel and an sdist, built from a copy of the checkout."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
BUILD_SECONDS_MAX = 900
INSTALL_SECONDS_MAX = 1200


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the wheel, made from the sdist, and the sdist."""
    source, out = tmp_path_factory.mktemp("source") / "a checkout", tmp_path_factory.mktemp("dist")
    listed = subprocess.run(["git", "ls-files", "-z"], capture_output=True, text=True, cwd=PROJECT, check=False)
    if listed.returncode:
        pytest.skip("git: not a git checkout")
    for name in filter(None, listed.stdout.split("\0")):
        if (PROJECT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(PROJECT / name, source / name)
    words = [sys.executable, "-m", "build", "--outdir", str(out), str(source)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=BUILD_SECONDS_MAX, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.fixture(scope="session")
def wheel(built: Path) -> Path:
    (found,) = built.glob("*.whl")
    return found


def environment(python: Path | str, folder: Path, requirement: str) -> Path:
    """The interpreter of a new environment of `python` that holds `requirement` and what that asks for.

    Our pip installs into it: an environment with a pip of its own takes some seconds more.
    """
    inside = folder / "bin" / "python"
    into = ["--python", str(inside), "install", "-q", "--no-compile", requirement]
    for words in ([python, "-m", "venv", "--without-pip", folder], [sys.executable, "-m", "pip", *into]):
        done = subprocess.run(words, capture_output=True, text=True, timeout=INSTALL_SECONDS_MAX, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    return inside
