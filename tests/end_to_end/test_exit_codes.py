"""Exit codes of every program, by the table in README.md."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from firmware_tools import station_cli
from fleet.cli import demo
from hw_bench import cli as bench
from tests.waiting import PATIENCE_SECONDS

ROOT = Path(__file__).parents[2]
PROGRAMS = {
    "fleet": "fleet.cli:main",
    "device-agent": "device_agent.cli:main",
    "fleet-station": "firmware_tools.station_cli:main",
    "firmware-tools": "firmware_tools.cli:main",
    "hw-bench": "hw_bench.cli:main",
}
CASES = [(program, words, code) for program in PROGRAMS for words, code in (("--help", 0), ("nonesuch", 2), ("", 2))]
CASES += [
    ("fleet", "cert inspect missing.pem", 1),
    ("fleet", "model list --home missing", 1),
    ("fleet", "model list", 2),
    ("device-agent", "status --home missing", 1),
    ("device-agent", "status", 2),
    ("device-agent", "init --home new --device-id a --est https://h --mqtt h:1 --ca missing.pem", 2),
    ("fleet-station", "provision --port x --est https://h --cert missing.pem --key k --ca c --device-id a", 2),
    ("firmware-tools", "frame decode nothing", 1),
    ("firmware-tools", "frame decode missing", 2),
    ("hw-bench", "run registry --keep .", 1),
    ("hw-bench", "run handshakes --keep .", 2),
]


def started(program: str, words: str, folder: Path, stdout: int) -> "subprocess.Popen[str]":
    module, name = PROGRAMS[program].split(":")
    code = f"import sys; sys.argv[0] = {program!r}; from {module} import {name}; {name}()"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("FLEET_", "DEVICE_"))}
    return subprocess.Popen(
        [sys.executable, "-c", code, *words.split()],
        cwd=folder,
        env={**environment, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(("program", "words", "code"), CASES)
def test_exit_code(program: str, words: str, code: int, tmp_path: Path) -> None:
    (tmp_path / "nothing").write_text("")
    process = started(program, words, tmp_path, subprocess.DEVNULL)
    _, errors = process.communicate(timeout=PATIENCE_SECONDS)
    assert (process.returncode, "Traceback" in errors) == (code, False), errors


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_pipe_that_its_reader_has_closed(program: str, tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        process = started(program, "--help", tmp_path, writer)
    finally:
        os.close(writer)
    _, errors = process.communicate(timeout=PATIENCE_SECONDS)
    assert (process.returncode, errors) == (141, "")


def test_the_table_is_complete() -> None:
    rows = re.findall(r"^\| (\d+) \| [^|]+ \| ([^|]+) \|$", (ROOT / "README.md").read_text(), re.MULTILINE)
    programs = {int(code): who for code, who in rows}
    assert set(programs) == {0, 1, 2, 3, 4, 130, 141}
    assert {code for code, who in programs.items() if who == "all"} == {0, 1, 2, 141}
    station = {
        station_cli.EXIT_REFUSED,
        station_cli.EXIT_NO_BOARD,
        station_cli.EXIT_NO_AUTHORITY,
        station_cli.EXIT_STOPPED,
    }
    assert station == {1, *(code for code, who in programs.items() if "`fleet-station`" in who)}
    for number, program in ((demo.EXIT_INTERRUPTED, "`fleet demo`"), (bench.EXIT_INTERRUPTED, "`hw-bench`")):
        assert program in programs[number]
