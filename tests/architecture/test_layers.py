"""The shape of the project: import-linter's contracts, what a program loads, and what stands at the top."""

import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
TOP_LEVEL = {"pyproject.toml", "README.md", "LICENSE", "fleet", "device_agent", "firmware_tools", "tests", "hw_bench"}
SERVER_MODULES = ("aiohttp", "aiosqlite", "asyncpg", "OpenSSL", "amqtt", "msgspec", "uvloop", "sqlite3")


def modules_after(statement: str) -> set[str]:
    """The modules that a fresh interpreter has loaded after `statement`."""
    code = f"{statement}\nimport sys\nprint('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PROJECT)
    return set(done.stdout.split())


def modules_of(folder: str) -> list[str]:
    """The names of all modules in a package's folder."""
    files = (PROJECT / folder).rglob("*.py")
    names = (".".join(file.relative_to(PROJECT).with_suffix("").parts) for file in files)
    return sorted(name.removesuffix(".__init__") for name in names)


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


@pytest.mark.parametrize(
    "module",
    [
        "device_agent",
        "device_agent.cli",
        "device_agent.enroll_child",
        "firmware_tools.station_cli",
        "firmware_tools.cli",
        "fleet.est_client.client",
        "fleet.wire.csr",
        "fleet.wire.est",
    ],
)
def test_device_and_factory_load_three_packages_only(module: str) -> None:
    loaded = modules_after(f"import {module}")
    assert not {m for m in loaded if m.split(".")[0] in SERVER_MODULES}
    others = {m for m in loaded if m.startswith("fleet.") and m.split(".")[1] not in ("wire", "est_client")}
    assert others <= {"fleet.config", "fleet.config.small_files", "fleet.config.streams"}
    assert module.startswith("device_agent") or not {m for m in loaded if m.startswith("device_agent")}


def test_the_est_client_imports_wire_alone_and_reads_small_files() -> None:
    loaded = modules_after("import " + ", ".join(modules_of("fleet/est_client")))
    loaded = {m for m in loaded if m.startswith("fleet.")} - {"fleet.config", "fleet.config.small_files"}
    assert {m.split(".")[1] for m in loaded} == {"wire", "est_client"}


def test_the_emulated_board_is_loaded_by_its_command_alone() -> None:
    of_board = ("device_agent.emulated", "device_agent.cli.emulate", "device_agent.__main__")
    agent = [m for m in modules_of("device_agent") if not m.startswith(of_board)]
    loaded = modules_after("import " + ", ".join(agent))
    assert "device_agent.loop.runner" in loaded
    assert not {m for m in loaded if m.startswith(("device_agent.emulated", "fleet.wire.serial"))}
    by_command = modules_after("from device_agent.cli import cli; cli.get_command(None, 'emulate')")
    assert "device_agent.emulated.board" in by_command


@pytest.mark.parametrize("module", ["fleet.cli", "fleet.cli.cert"])
def test_light_commands_load_no_server(module: str) -> None:
    loaded = {name.split(".")[0] for name in modules_after(f"import {module}")}
    assert loaded.isdisjoint(SERVER_MODULES), loaded & set(SERVER_MODULES)
