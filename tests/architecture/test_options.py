"""One style of options in all programs: what each has, and that --home is taken before and after a command."""

from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.shell_completion import BashComplete
from click.testing import CliRunner

from device_agent.cli import cli as device_agent
from firmware_tools.cli import main as firmware_tools
from firmware_tools.station_cli import main as fleet_station
from fleet.cli import main as fleet
from hw_bench.cli import main as hw_bench

PROGRAMS = {
    "fleet": fleet,
    "device-agent": device_agent,
    "fleet-station": fleet_station,
    "firmware-tools": firmware_tools,
    "hw-bench": hw_bench,
}


def commands_of(group: click.Group, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Each command that is no group, by its words."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from commands_of(command, (*words, name))
        else:
            yield (*words, name), command


@pytest.mark.parametrize("name", PROGRAMS)
def test_each_program_has_help_version_and_completion(name: str) -> None:
    program = PROGRAMS[name]
    for option in ("-h", "--help"):
        shown = CliRunner().invoke(program, [option], terminal_width=200, max_content_width=200)
        assert shown.exit_code == 0
        assert f"_{name.upper().replace('-', '_')}_COMPLETE=bash_source {name}" in " ".join(shown.stdout.split())
    assert CliRunner().invoke(program, ["--version"]).stdout.startswith(name)
    words = BashComplete(program, {}, name, "_COMPLETE").get_completions([], "")
    assert {each.value for each in words} == set(program.list_commands(click.Context(program)))


@pytest.mark.parametrize("name", PROGRAMS)
def test_each_command_has_a_sentence_and_options_with_one(name: str) -> None:
    for words, command in commands_of(PROGRAMS[name]):
        assert command.help, words
        hidden = {"--help"}
        for option in command.params:
            if isinstance(option, click.Option) and not option.hidden and option.opts[-1] not in hidden:
                assert option.help, (words, option.opts)
                assert all(each.startswith("--") or len(each) == 2 for each in option.opts), (words, option.opts)


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_command_that_takes_home_takes_it_in_front_as_well(name: str) -> None:
    program = PROGRAMS[name]
    in_front = any("--home" in option.opts for option in program.params)
    takes = [words for words, command in commands_of(program) if any("--home" in each.opts for each in command.params)]
    assert in_front == bool(takes)
    assert in_front == (name in ("fleet", "device-agent"))


@pytest.mark.parametrize(
    "words",
    [["--home", "H", "service", "print"], ["service", "--home", "H", "print"], ["service", "print", "--home", "H"]],
)
def test_home_in_each_place(words: list[str], tmp_path: Path) -> None:
    done = CliRunner().invoke(device_agent, [word.replace("H", str(tmp_path)) for word in words])
    assert f"{tmp_path} is not a device's home" in done.stderr


@pytest.mark.parametrize("words", [["--home", "H", "device", "list"], ["device", "list", "--home", "H"]])
def test_home_in_each_place_of_fleet(words: list[str], tmp_path: Path) -> None:
    done = CliRunner().invoke(fleet, [word.replace("H", str(tmp_path)) for word in words])
    assert done.exit_code == 1
    assert str(tmp_path) in done.stderr
