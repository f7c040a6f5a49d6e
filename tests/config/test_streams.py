"""Standard streams that are closed, full or of another encoding, and how a program ends with them."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from fleet.config.streams import json_text, printable
from tests.waiting import PATIENCE_SECONDS

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
@click.argument("file", type=click.Path(exists=True))
def existing(file: str) -> None: ...

@main.command()
def missing() -> None:
    try:
        open("x")
    except FileNotFoundError:
        raise click.ClickException("x is no home of ours.") from None

@main.command()
def own_cause() -> None:
    error = click.ClickException("it failed.")
    raise error from error

class Interrupted(click.ClickException):
    def show(self, file: object = None) -> None:
        raise KeyboardInterrupt

@main.command()
@click.argument("where", type=click.Choice(["within", "at-its-end"]))
def interrupt(where: str) -> None:
    raise KeyboardInterrupt if where == "within" else Interrupted("it failed.")

@main.command()
def refused() -> None:
    click.echo("from a server: \\x1b]0;title\\a \\x9b2J \\u202egnp.exe\\r", err=True)
    raise click.ClickException("from a server: \\x1bc")

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
        (
            "refused",
            1,
            "",
            "from a server: \\x1b]0;title\\x07 \\x9b2J \\u202egnp.exe\\r\nError: from a server: \\x1bc\n",
        ),
        ("warn", 0, "quiet\n", ""),
        ("own-cause", 1, "", "Error: it failed.\n"),
        ("interrupt within", 1, "", "\nAborted!\n"),
        ("interrupt at-its-end", 1, "", "Aborted!\n"),
    ],
)
def test_ends(program: Path, words: str, code: int, out: str, err: str) -> None:
    done = subprocess.run(
        ["bash", "-c", f"{shlex.quote(sys.executable)} {program} {words}"],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_SECONDS,
    )
    assert "Traceback" not in done.stderr
    assert (done.returncode, done.stdout, done.stderr) == (code, out, err)


def test_another_encoding_escapes_what_it_lacks(program: Path) -> None:
    command = [sys.executable, str(program), "lines", "1"]
    done = subprocess.run(command, env={**os.environ, "PYTHONIOENCODING": "latin-1"}, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (0, b"line 0 \\u2026\n")


@pytest.mark.parametrize("words", ["directory", "existing x", "missing"])
def test_a_working_directory_that_is_gone(program: Path, tmp_path: Path, words: str) -> None:
    command = f"cd {tmp_path}/gone && rmdir {tmp_path}/gone && {shlex.quote(sys.executable)} {program} {words}"
    (tmp_path / "gone").mkdir()
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "Error: the working directory has been deleted.\n")


@pytest.mark.parametrize("words", ["existing /nowhere/x", "missing"])
def test_a_file_that_is_missing_elsewhere_is_named(program: Path, tmp_path: Path, words: str) -> None:
    command = [sys.executable, str(program), *words.split()]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "the working directory" not in done.stderr
    assert "x" in done.stderr


def test_printable_text_and_json() -> None:
    hostile = "caf\u00e9 \u20ac \x1b[2J\x9b\x7f\u202e\u2028\n"
    assert printable(hostile) == "caf\u00e9 \u20ac \\x1b[2J\\x9b\\x7f\\u202e\\u2028\\n"
    assert printable(hostile, keep="\n").endswith("\\u2028\n")
    text = json_text({"name": hostile})
    assert text.isprintable()
    assert "caf\u00e9" in text
    assert json.loads(text) == {"name": hostile}
    assert json_text({"name": hostile}, ascii_only=True).isascii()
