"""What commands say names what was typed: the path, the option, the limit."""

import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner, Result

from fleet.cli import main
from fleet.client.client import Client
from fleet.config import streams
from fleet.runtime.host import Endpoints, ready_file_with


def run_fleet(home: Path, *words: str, expect: int = 0) -> Result:
    done = CliRunner().invoke(main, words, env={"FLEET_HOME": str(home)})
    assert done.exit_code == expect, (done.stdout, done.stderr, done.exception)
    return done


def test_an_output_that_is_there_already_is_a_failure_and_no_token_is_made(home: Path, tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.write_text("mine")
    said = run_fleet(home, "token", "create", "--model", "default", "--out", str(taken), expect=1).stderr
    assert said == f"Error: writing '{taken}': the file is there already. Name another file, or remove that one.\n"
    assert taken.read_text() == "mine"
    assert run_fleet(home, "token", "list", "-o", "json").stdout == "[]\n"


def test_a_ready_file_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    asked_for = tmp_path / "nowhere" / "ready.json"
    endpoints = Endpoints("a:1", "b:2", "c:3", "ca.pem", 1)
    with pytest.raises(FileNotFoundError) as caught, ready_file_with(endpoints, asked_for):
        pass
    assert caught.value.filename == str(asked_for)


def test_a_home_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    said = run_fleet(tmp_path, "init", "/proc/x", expect=1).stderr
    assert said.startswith("Error: making a home in '/proc/x': ")
    assert "/.x." not in said


def test_a_time_that_cannot_be_read_is_named_with_its_option(home: Path) -> None:
    words = ("renewal", "campaign", "--model", "default", "--before", "tomorrow")
    assert "Invalid value for '--before': " in run_fleet(home, *words, expect=2).stderr


def test_a_password_in_a_url_is_refused_with_the_option_that_may_hold_it(tmp_path: Path) -> None:
    url = "postgresql://fleet:secret@db.example/fleet"
    said = run_fleet(tmp_path, "init", str(tmp_path / "new"), "--database", url, expect=2).stderr
    assert "--database-file" in said
    assert "secret" not in said


def test_a_quota_of_none_is_said(home: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "station")
    run_fleet(home, "station", "add", "line-1", "--model", "default", "--quota", "5", "--out", out)
    assert re.search(r"^quota: +no limit$", run_fleet(home, "station", "set", "line-1", "--quota", "0").stdout, re.M)


def test_a_full_output_is_told_of_in_plain_words(home: Path) -> None:
    command = [sys.executable, "-m", "fleet", "model", "list", "--home", str(home)]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert "standard output: No space left on device".lower() in done.stderr.lower()
    assert "Put that right" not in done.stderr


@pytest.mark.parametrize(
    ("verb", "states"), [("show", {None}), ("approve", {"pending"}), ("deny", {"approved", "pending"})]
)
def test_requests_complete_that_can_be_decided(
    home: Path, monkeypatch: pytest.MonkeyPatch, verb: str, states: set[str | None]
) -> None:
    def items(_client: Client, path: str, _limit: int | None = None, /, **query: str) -> list[dict[str, str]]:
        assert path == "/v1/requests"
        asked.add(query.get("state"))
        return [{"id": f"0123456789abcde{len(asked)}"}]

    asked: set[str | None] = set()
    monkeypatch.setattr(Client, "items", items)
    completion = ShellComplete(main, {}, "fleet", "_FLEET_COMPLETE")
    found = completion.get_completions(["--home", str(home), "request", verb], "0123")
    assert asked == states
    assert len(found) == len(states)


def test_an_option_that_help_does_not_list_is_not_suggested() -> None:
    options = [click.Option(["--prompt"], hidden=True), click.Option(["--prod"])]
    context = click.Context(click.Command("serve", params=list[click.Parameter](options)))
    error = click.NoSuchOption("--prot", possibilities=["--prompt", "--prod"], ctx=context)
    shown = streams.without_hidden(error)
    assert isinstance(shown, click.NoSuchOption)
    assert shown.possibilities == ["--prod"]
