"""Tables for people and JSON for programs say the same."""

import contextlib
import fcntl
import json
import os
import pty
import struct
import subprocess
import sys
import termios
from datetime import UTC, datetime, timedelta, timezone

import click
import pytest
from click.testing import CliRunner

from fleet.cli.output import Column, output_option, print_rows, print_value

AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone(timedelta(hours=1)))
COLUMNS = ("id", "last_seen", "models")
ROWS: list[dict[str, object]] = [
    {"id": "pump-7", "last_seen": AT, "models": ["a", "b"], "revision": 3},
    {"id": "p", "last_seen": None, "models": []},
]
VALUE = {
    "id": "pump-7",
    "names": ["a", "b"],
    "none": None,
    "empty": [],
    "key": b"\x0a",
    "ok": True,
    "for": timedelta(2),
}


@click.command()
@output_option
def rows(output: str) -> None:
    print_rows(COLUMNS, ROWS, output)


@click.command()
@output_option
def value(output: str) -> None:
    print_value(VALUE, output)


def test_rows_as_a_table() -> None:
    lines = CliRunner().invoke(rows).output.splitlines()
    assert lines == [
        "ID      LAST SEEN             MODELS",
        "pump-7  2026-01-02 02:04:05Z  a, b",
        "p       -                     -",
    ]


def test_rows_as_json() -> None:
    assert json.loads(CliRunner().invoke(rows, ["-o", "json"]).output) == [
        {"id": "pump-7", "last_seen": "2026-01-02T02:04:05Z", "models": ["a", "b"]},
        {"id": "p", "last_seen": None, "models": []},
    ]


def test_no_rows_are_an_empty_array(capsys: pytest.CaptureFixture[str]) -> None:
    print_rows(COLUMNS, [], "json")
    assert json.loads(capsys.readouterr().out) == []


def test_a_value_as_a_table() -> None:
    lines = CliRunner().invoke(value).output.splitlines()
    assert lines[:3] == ["id:    pump-7", "names: a", "       b"]
    assert "none" not in "".join(lines)
    assert "empty: -" in lines
    assert "key:   0a" in lines
    assert "ok:    yes" in lines


def test_records_of_a_value_are_blocks_of_lines(capsys: pytest.CaptureFixture[str]) -> None:
    row = {"id": "cam-7", "certificates": [{"serial": "4f", "revoked_at": None}, {"serial": "50"}], "state": "active"}
    print_value(row, "table")
    assert capsys.readouterr().out.splitlines() == [
        "id:    cam-7",
        "state: active",
        "",
        "certificates 1 of 2:",
        "  serial:     4f",
        "  revoked at: -",
        "",
        "certificates 2 of 2:",
        "  serial: 50",
    ]


def test_one_record_of_a_value_is_no_list_and_without_members_it_is_empty(capsys: pytest.CaptureFixture[str]) -> None:
    print_value({"id": "cam-7", "tags": {}, "skipped": {"retired": 2}, "by": [{}], "state": "active"}, "table")
    assert capsys.readouterr().out.splitlines() == [
        "id:    cam-7",
        "tags:  -",
        "by:    -",
        "state: active",
        "",
        "skipped:",
        "  retired: 2",
    ]


def test_the_revision_is_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    row = {"id": "pump-7", "revision": 3}
    print_value(row, "table")
    print_value(row, "table", {**row, "more": 1})
    print_value(row, "json")
    assert "3" not in capsys.readouterr().out


def test_a_value_as_json() -> None:
    found = json.loads(CliRunner().invoke(value, ["-o", "json"]).output)
    expected = {**VALUE, "key": "0a", "for": 172_800.0}
    assert found == expected


def test_a_column_has_a_key_and_a_format() -> None:
    @click.command()
    def command() -> None:
        print_rows(("id", Column("models", format=len), "other"), ROWS, "table")

    assert CliRunner().invoke(command).output.splitlines() == [
        "ID      MODELS  OTHER",
        "pump-7  2       -",
        "p       0       -",
    ]


def test_times_of_the_api_are_shown_to_the_second() -> None:
    @click.command()
    def command() -> None:
        print_value({"at": "2026-01-02T02:04:05.678Z", "not": "2026-01-02"}, "table")

    assert CliRunner().invoke(command).output == "at:  2026-01-02 02:04:05Z\nnot: 2026-01-02\n"


def on_a_terminal(command: str, columns: int, **environment: str) -> str:
    """What `python -c command` prints on a terminal of so many columns; 0 for one that does not say."""
    output, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 0, columns, 0, 0))
    kept = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR", "TERM")}
    done = subprocess.run(
        [sys.executable, "-c", command], stdout=terminal, stderr=terminal, env={**kept, **environment}, check=False
    )
    os.close(terminal)
    data = b""
    with contextlib.suppress(OSError):  # EIO: the end
        while more := os.read(output, 4096):
            data += more
    os.close(output)
    assert done.returncode == 0, data
    return data.decode().replace("\r\n", "\n")


WIDE = """
import click
from fleet.cli.output import print_rows
from fleet.config.streams import run
rows = [{"id": f"device-{n}", "state": "revoked", "at": "2026-01-02T02:04:05Z", "text": "word " * 30} for n in range(3)]
@click.command()
def main():
    print_rows(("id", "state", "at", "text"), rows, "table")
run(main)
"""


@pytest.mark.parametrize(("columns", "bound"), [(0, 80), (60, 60), (200, 200)])
def test_a_table_fits_the_terminal_and_loses_nothing(columns: int, bound: int) -> None:
    shown = on_a_terminal(WIDE, columns, NO_COLOR="1")
    assert max(map(len, shown.splitlines())) <= bound
    assert shown.count("word") == 90
    assert all(f"device-{n}" in shown for n in range(3))


def test_a_pipe_gets_each_row_on_one_line() -> None:
    done = subprocess.run([sys.executable, "-c", WIDE], capture_output=True, text=True, check=True)
    assert len(done.stdout.splitlines()) == 4
    assert "\x1b" not in done.stdout


@pytest.mark.parametrize(
    ("environment", "colored"),
    [({}, True), ({"NO_COLOR": "1"}, False), ({"NO_COLOR": ""}, True), ({"TERM": "dumb"}, False)],
)
def test_color_only_where_it_is_wanted(environment: dict[str, str], colored: bool) -> None:
    shown = on_a_terminal(WIDE, 100, **environment)
    assert ("\x1b[31mrevoked" in shown) == colored
    assert ("\x1b" in shown) == colored


NARROW = """
import click
from fleet.cli.output import print_rows, print_value
from fleet.config.streams import run
row = {"id": "pump-hall-17", "state": "quarantined", "at": "2026-01-02T02:04:05Z", "why": "lost in the lab"}
row["by"] = "eve"
@click.command()
def main():
    print_rows(tuple(row), [row, row], "table")
run(main)
"""


def test_words_stay_whole_while_columns_can_give_way_between_them() -> None:
    shown = on_a_terminal(NARROW, 60)
    assert max(len(click.unstyle(line)) for line in shown.splitlines()) <= 60
    assert shown.count("\x1b[31mquarantined\x1b[0m") == 2
    for word in ("pump-", "2026-01-02", "02:04:05Z", "lost", "lab", "eve"):
        assert shown.count(word) >= 2
    assert shown.count("\x1b[0m") == 2 + 1  # of the heading, and none of a cell without a color


def test_rows_that_cannot_fit_are_blocks() -> None:
    shown = on_a_terminal(NARROW, 36)
    lines = [click.unstyle(line) for line in shown.splitlines()]
    assert lines[: len(lines) // 2] == [
        "id:    pump-hall-17",
        "state: quarantined",
        "at:    2026-01-02 02:04:05Z",
        "why:   lost in the lab",
        "by:    eve",
    ]
    assert lines[5] == ""
    assert shown.count("\x1b[31mquarantined\x1b[0m") == 2


def test_a_long_text_of_one_value_is_wrapped_on_a_terminal_under_itself_and_no_word_is_broken() -> None:
    program = "from fleet.cli.output import print_value; print_value({'a': 'word ' * 20 + 'f' * 64, 'bb': 1}, 'table')"
    lines = on_a_terminal(program, 40).splitlines()
    assert lines[0] == "a:  word word word word word word word"
    assert lines[1] == "    word word word word word word word"
    assert lines[3:] == ["    " + "f" * 64, "bb: 1"]
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert len(done.stdout.splitlines()) == 2


def test_json_is_escaped_where_the_output_is_not_utf8() -> None:
    program = "from fleet.cli.output import print_value; print_value({'a': 'Köln \u2026'}, 'json')"
    environment = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, env=environment, check=True)
    assert json.loads(done.stdout) == {"a": "Köln …"}
    assert done.stdout.isascii()


@pytest.mark.parametrize("text", ["a\x1b[31mb", "a\nb", "a\u202eb"])
def test_a_terminal_is_shown_control_characters_and_does_not_obey_them(text: str) -> None:
    @click.command()
    def command() -> None:
        print_rows(("a",), [{"a": text}], "table")
        print_value({"a": text}, "table")

    shown = CliRunner().invoke(command).output
    assert all(character.isprintable() or character == "\n" for character in shown)
    assert shown.count("\n") == 3


def test_times_are_utc_whatever_they_were() -> None:
    assert AT.astimezone(UTC).hour == 2
