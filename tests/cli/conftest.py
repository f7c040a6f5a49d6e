"""A fleet's home for commands to work at."""

import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from fleet.cli import main


@pytest.fixture(scope="session")
def empty_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `fleet init` makes it. To be copied, and not to be changed."""
    home = tmp_path_factory.mktemp("fleet") / "home"
    done = CliRunner().invoke(main, ["init", str(home)])
    assert done.exit_code == 0, done.output
    return home


@pytest.fixture
def home(empty_home: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(empty_home, tmp_path / "home"))
