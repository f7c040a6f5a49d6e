"""With one extra alone, the programs that it is for can be started."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.packages.conftest import environment

PROJECT = Path(__file__).parents[2]
EXTRAS = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
MODULES = {  # what a requirement is imported as, of those that each extra has
    "agent": {"paho-mqtt": "paho"},
    "board": {"pyserial": "serial", "cbor2": "cbor2", "cobs": "cobs"},
    "server": {
        "aiohttp": "aiohttp", "aiosqlite": "aiosqlite", "asyncpg": "asyncpg", "amqtt": "amqtt", "msgspec": "msgspec",
        "pyOpenSSL": "OpenSSL", "uvloop": "uvloop", "wsproto": "wsproto", "h11": "h11",
    },
}  # fmt: skip
ENTRIES = {
    "agent": ["device_agent.cli", "device_agent.run", "device_agent.enroll_child"],
    "board": ["device_agent.emulated", "device_agent.cli.emulate"],
    "station": ["firmware_tools.cli", "firmware_tools.station_cli", "firmware_tools.station"],
    "server": ["fleet.cli", "fleet.cli.serve", "fleet.runtime.serve", "fleet.runtime.worker_main"],
}
OTHER = {
    "agent": ("server", "board"),
    "board": ("server", "agent"),
    "station": ("server",),
    "server": ("agent", "board"),
}
IMPORT_ALL = """
import importlib, pkgutil, sys
names, blocked, others = (words.split(",") for words in sys.argv[1:])
sys.modules.update(dict.fromkeys(filter(None, blocked)))  # None: importing it raises ModuleNotFoundError
for name in names:
    module = importlib.import_module(name)
    for each in pkgutil.iter_modules(getattr(module, "__path__", ())):
        if not each.name.startswith("__") and f"{name}.{each.name}" not in others:
            importlib.import_module(f"{name}.{each.name}")
"""


def imports(python: Path | str, extra: str, blocked: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    others = [name for other in OTHER[extra] for name in ENTRIES[other]]
    words = [str(python), "-c", IMPORT_ALL, ",".join(ENTRIES[extra]), ",".join(blocked), ",".join(others)]
    return subprocess.run(words, capture_output=True, text=True, cwd=folder, timeout=120, check=False)


def test_the_modules_are_those_of_the_extras() -> None:
    for extra, modules in MODULES.items():
        assert {each.partition(">")[0] for each in EXTRAS[extra]} == set(modules)


@pytest.mark.parametrize("extra", ENTRIES)
def test_its_programs_import_nothing_of_other_extras(extra: str) -> None:
    done = imports(sys.executable, extra, [name for other in OTHER[extra] for name in MODULES[other].values()], PROJECT)
    assert done.returncode == 0, done.stderr


@pytest.mark.long
@pytest.mark.parametrize("extra", ENTRIES)
def test_its_programs_start_where_it_alone_is_installed(extra: str, wheel: Path, tmp_path: Path) -> None:
    inside = environment(sys.executable, tmp_path / "environment", f"{wheel}[{extra}]")
    done = imports(inside, extra, [], tmp_path)
    assert done.returncode == 0, done.stderr
