"""Tables for people and JSON for programs say the same."""

import json
from datetime import UTC, datetime, timedelta, timezone

import click
import pytest
from click.testing import CliRunner

from fleet.cli.output import output_option, print_rows, print_value

AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone(timedelta(hours=1)))
COLUMNS = ("id", "last_seen", "models")
ROWS = [("pump-7", AT, ["a", "b"]), ("p", None, [])]
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


def test_a_value_as_json() -> None:
    found = json.loads(CliRunner().invoke(value, ["-o", "json"]).output)
    expected = {**VALUE, "key": "0a", "for": 172_800.0}
    assert found == expected


def test_rows_of_another_length_are_a_mistake() -> None:
    with pytest.raises(ValueError, match="zip"):
        print_rows(("a", "b"), [("x",)], "json")


@pytest.mark.parametrize("text", ["a\x1b[31mb", "a\nb", "a\u202eb"])
def test_a_terminal_is_shown_control_characters_and_does_not_obey_them(text: str) -> None:
    @click.command()
    def command() -> None:
        print_rows(("a",), [(text,)], "table")
        print_value({"a": text}, "table")

    shown = CliRunner().invoke(command).output
    assert all(character.isprintable() or character == "\n" for character in shown)
    assert shown.count("\n") == 3


def test_times_are_utc_whatever_they_were() -> None:
    assert AT.astimezone(UTC).hour == 2
