"""Commands that are called otherwise elsewhere: the error names ours, and ours is there."""

import re

import click
import pytest
from click.testing import CliRunner

from fleet.cli import main
from fleet.cli.other_names import OTHER_NAMES


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("history cam-7", "No such command 'history'. See: fleet audit list --device DEVICE_ID, or fleet event list"),
        ("device delete cam-7", "No such command 'delete'. See: fleet device retire DEVICE_ID"),
        ("backup create fleet.backup", "No such command 'create'. See: fleet backup take FILE"),
        ("backup create", "No such command 'create'. See: fleet backup take FILE"),
        ("device revok cam-7", "No such command 'revok'. Did you mean 'revoke'?"),
        ("session show --nothing", "No such option '--nothing'"),
    ],
)
def test_the_error_names_our_command(words: str, says: str) -> None:
    done = CliRunner().invoke(main, words.split())
    assert done.exit_code == 2
    assert f"Error: {says}" in done.stderr


def test_each_is_a_command_of_ours_and_no_name_is_taken() -> None:
    context = click.Context(main)
    for group, names in OTHER_NAMES.items():
        parent = main if not group else main.get_command(context, group)
        assert isinstance(parent, click.Group)
        assert not names.keys() & set(parent.list_commands(context))
        for advice in names.values():
            done = CliRunner().invoke(main, [*re.findall(r"(?<= )[a-z]+\b", advice.split(",")[0])[:2], "--help"])
            assert done.exit_code == 0, advice
