"""Standard streams that are closed, full or of another encoding, and how a program ends with them."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import warnings
from pathlib import Path

import click

from fleet.config.streams import Program

@click.group(cls=Program)
def main() -> None: ...

@main.command()
@click.argument("count", type=int)
def lines(count: int) -> None:
    for number in range(count):
        click.echo(f"line {number} \\u2026")

@main.command()
def ask() -> None:
    click.echo(click.prompt("Name"))

@main.command()
@click.argument("text")
def encode(text: str) -> None:
    click.echo(text)
    text.encode()

@main.command()
def directory() -> None:
    Path("x").absolute()

@main.command()
def warn() -> None:
    warnings.warn("the library is unhappy")
    click.echo(click.style("quiet", fg="red"))

@main.command()
def opens() -> None:
    with open("/dev/null") as file:
        click.echo(str(file.fileno() > 2))

main()
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("program") / "program.py"
    file.write_text(PROGRAM)
    return file


@pytest.mark.parametrize(
    ("words", "code", "out", "err"),
    [
        ("lines 1", 0, "line 0 …\n", ""),
        ("lines 1 >/dev/full", 1, "", "Error: standard output: no space left on device.\n"),
        ("lines 100000 >/dev/full", 1, "", "Error: standard output: no space left on device.\n"),
        ("--help >/dev/full", 1, "", "Error: standard output: no space left on device.\n"),
        ("lines 1 >&-", 1, "", "Error: standard output: it is closed.\n"),
        ("lines 1 2>&-", 0, "line 0 …\n", ""),
        ("lines 100000 | head -1; exit ${PIPESTATUS[0]}", 141, "line 0 …\n", ""),
        ("ask <&-", 1, "Name: ", "Aborted!\n"),
        ("ask </dev/null", 1, "Name: ", "Aborted!\n"),
        ("nonesuch 2>/dev/full", 2, "", ""),
        ("nonesuch 2>&-", 2, "", ""),
        ("encode $'\\xff'", 2, "\\udcff\n", "Error: '\\udcff' in an argument is not valid UTF-8.\n"),
        ("opens <&- 2>&-", 0, "True\n", ""),
        ("warn", 0, "quiet\n", ""),
    ],
)
def test_ends(program: Path, words: str, code: int, out: str, err: str) -> None:
    done = subprocess.run(
        ["bash", "-c", f"{shlex.quote(sys.executable)} {program} {words}"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert "Traceback" not in done.stderr
    assert (done.returncode, done.stdout, done.stderr) == (code, out, err)


def test_another_encoding_escapes_what_it_lacks(program: Path) -> None:
    command = [sys.executable, str(program), "lines", "1"]
    done = subprocess.run(command, env={**os.environ, "PYTHONIOENCODING": "latin-1"}, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (0, b"line 0 \\u2026\n")


def test_a_working_directory_that_is_gone(program: Path, tmp_path: Path) -> None:
    command = f"cd {tmp_path}/gone && rmdir {tmp_path}/gone && {shlex.quote(sys.executable)} {program} directory"
    (tmp_path / "gone").mkdir()
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "Error: the working directory has been deleted.\n")
