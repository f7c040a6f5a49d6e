"""Every failure is one sentence of three parts, and exit 1."""

import errno

import click
import pytest
from click.testing import CliRunner

from fleet.cli.errors import CliError, attempting
from fleet.domain.errors import Conflict, FleetError
from fleet.wire.errors import BadSignature


def told(error: BaseException, next_step: str = "", attempted: str = "adding device d-1") -> str:
    with pytest.raises(CliError) as caught, attempting(attempted, next_step):
        raise error
    return str(caught.value.message)


def test_the_three_parts_make_sentences() -> None:
    assert (
        CliError("reading 'a'", "The file is empty.", "Check it.").message
        == "reading 'a': the file is empty. Check it."
    )
    assert CliError("reading 'a'", "DER is cut off").message == "reading 'a': DER is cut off."


def test_a_fleet_error_brings_its_own_advice() -> None:
    error = Conflict("device-exists", "Device d-1 is there already.", "Choose another id.")
    said = "adding device d-1: device d-1 is there already. Choose another id. (device-exists)"
    assert told(error, "Not this.") == said
    assert told(FleetError("x", "It failed."), "Try again.") == "adding device d-1: it failed. Try again. (x)"


def test_an_error_is_one_line_that_does_not_control_the_terminal() -> None:
    error = Conflict("device-exists", "It is \x1b[2J\x9b\u202e there.\nError: all is well.")
    assert told(error).isprintable()


def test_a_wire_error() -> None:
    assert (
        told(BadSignature("It does not verify."), "Ask again.") == "adding device d-1: it does not verify. Ask again."
    )


def test_errors_of_the_operating_system() -> None:
    missing = FileNotFoundError(errno.ENOENT, "No such file or directory", "a.pem")
    assert told(missing) == "adding device d-1: no such file or directory (a.pem). Check the path."
    assert told(missing, attempted="reading 'a.pem'") == "reading 'a.pem': no such file or directory. Check the path."
    assert "disk" in told(OSError(errno.ENOSPC, "No space left on disk"))
    assert told(OSError()).startswith("adding device d-1: oserror.")


def test_other_errors_pass() -> None:
    with pytest.raises(ZeroDivisionError), attempting("dividing"):
        raise ZeroDivisionError
    with pytest.raises(BrokenPipeError), attempting("writing to who has gone"):  # for click, which says nothing
        raise BrokenPipeError
    first = CliError("a", "b")
    with pytest.raises(CliError) as caught, attempting("again"):
        raise first
    assert caught.value is first


def test_as_a_decorator_and_at_the_shell() -> None:
    @click.command()
    @attempting("doing it", "Do that first")
    def command() -> None:
        raise FleetError("no", "No.")

    result = CliRunner().invoke(command)
    assert result.exit_code == 1
    assert result.stderr == "Error: doing it: no. Do that first. (no)\n"
    assert result.stdout == ""
