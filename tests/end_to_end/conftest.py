"""A home made once, and a served copy of it for each test that needs one."""

import contextlib
import shutil
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import pytest

from tests.end_to_end.workers_fixtures import Devices
from tests.serving import ANY_PORTS, Served, run_fleet


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
def ports() -> Sequence[str]:
    """Where `served` listens."""
    return ANY_PORTS


@pytest.fixture
def served(home: Path, tmp_path: Path, ports: Sequence[str]) -> Iterator[Served]:
    serving = Served(home, tmp_path / "ready.json", ports).start()
    yield serving
    serving.stop()


@pytest.fixture
async def devices(shared: Served, tmp_path: Path) -> AsyncIterator[Devices]:
    """Before the server that a module's tests share."""
    async with contextlib.AsyncExitStack() as stack:
        yield Devices(shared, tmp_path, stack)
