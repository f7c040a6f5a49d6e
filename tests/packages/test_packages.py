"""The wheel and the sdist hold what they need, and a fresh environment with the wheel runs every program."""

import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

from tests.packages.conftest import environment

PROJECT = Path(__file__).parents[2]
METADATA = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
PROGRAMS = sorted(METADATA["scripts"])
PACKAGES = ("fleet", "device_agent", "firmware_tools", "hw_bench")

pytestmark = pytest.mark.long


def data_files() -> set[str]:
    """What the packages carry besides Python: statements, pages, the C sources, and the mark that they are typed."""
    return {
        str(file.relative_to(PROJECT))
        for package in PACKAGES
        for kind in ("*.sql", "*.md", "py.typed", "*.c", "*.h")
        for file in (PROJECT / package).rglob(kind)
    }


def test_the_wheel_holds_every_module_and_all_data_and_no_tests(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = {str(file.relative_to(PROJECT)) for package in PACKAGES for file in (PROJECT / package).rglob("*.py")}
    assert modules <= names
    assert data_files() <= names
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == set(PACKAGES)


def test_the_sdist_holds_all_data_and_the_license(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert data_files() | {"LICENSE", "README.md", "pyproject.toml"} <= names


@pytest.fixture(scope="module")
def programs(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the programs, in an environment that holds the wheel and what it asks for."""
    folder = tmp_path_factory.mktemp("fresh") / "an environment"
    return environment(sys.executable, folder, f"{wheel}[all]").parent


def run(programs: Path, name: str, *words: str, folder: Path) -> str:
    """What the program prints, from a folder and in an environment that know nothing of the checkout."""
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(folder)}
    done = subprocess.run(
        [programs / name, *words], capture_output=True, text=True, cwd=folder, env=environment, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_program_knows_its_version_and_its_help(programs: Path, name: str, tmp_path: Path) -> None:
    assert METADATA["version"] in run(programs, name, "--version", folder=tmp_path)
    assert "Usage:" in run(programs, name, "--help", folder=tmp_path)


def test_a_home_can_be_made_from_the_wheel(programs: Path, tmp_path: Path) -> None:
    """It takes the statements that make a registry's tables."""
    run(programs, "fleet", "init", "home", folder=tmp_path)
    assert run(programs, "fleet", "model", "list", "--home", "home", folder=tmp_path).count("default") == 1
