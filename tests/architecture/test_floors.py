"""The house keeps its shape: import-linter's contracts, what a program loads, and what stands at the top."""

import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
TOP_LEVEL = {"pyproject.toml", "README.md", "LICENSE", "fleet", "device_agent", "firmware_tools", "tests", "hw_bench"}
SERVER_MODULES = ("aiohttp", "aiosqlite", "asyncpg", "OpenSSL", "amqtt", "uvloop", "sqlite3")


def modules_after(statement: str) -> set[str]:
    """The modules that a fresh interpreter has loaded after `statement`."""
    code = f"{statement}\nimport sys\nprint('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PROJECT)
    return set(done.stdout.split())


def test_contracts_hold() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"],
        capture_output=True,
        text=True,
        cwd=PROJECT,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_the_top_level_is_as_agreed() -> None:
    tracked = subprocess.run(["git", "ls-files"], capture_output=True, text=True, cwd=PROJECT, check=False)
    if tracked.returncode:
        pytest.skip("git: not a git checkout")
    top = {line.split("/")[0] for line in tracked.stdout.splitlines()}
    assert {name for name in top if not name.startswith(".")} <= TOP_LEVEL


def test_the_package_root_is_empty() -> None:
    assert (PROJECT / "fleet" / "__init__.py").read_bytes() == b""


@pytest.mark.parametrize("module", ["device_agent", "device_agent.cli", "fleet.wire.est", "fleet.wire.csr"])
def test_the_device_side_loads_no_server(module: str) -> None:
    loaded = modules_after(f"import {module}")
    assert not {m for m in loaded if m.split(".")[0] in SERVER_MODULES}
    ours = {m for m in loaded if m.startswith("fleet.") and not m.startswith("fleet.wire")}
    assert ours <= {"fleet.config", "fleet.config.streams"}


@pytest.mark.parametrize("module", ["fleet.cli", "fleet.cli.cert"])
def test_light_commands_load_no_server(module: str) -> None:
    assert not {m for m in modules_after(f"import {module}") if m.split(".")[0] in ("aiohttp", "amqtt", "OpenSSL")}
