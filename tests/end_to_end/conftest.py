"""A home made once, and a served copy of it for whoever asks."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.serving import Served, run_fleet


@pytest.fixture(scope="session")
def pristine_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home") / "a home"
    run_fleet(home, "init", str(home), "--name", "acme")
    return home


@pytest.fixture
def home(pristine_home: Path, tmp_path: Path) -> Path:
    """A home of this test's own, in a path with a space in it."""
    return Path(shutil.copytree(pristine_home, tmp_path / "a home", symlinks=True))


@pytest.fixture
def served(home: Path, tmp_path: Path) -> Iterator[Served]:
    serving = Served(home, tmp_path / "ready.json").start()
    yield serving
    serving.stop()
