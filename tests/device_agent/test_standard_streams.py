"""The agent's and the factory's programs with closed or full streams, odd arguments, and no working directory."""

import io
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from device_agent.cli import cli
from device_agent.log.event_log import EventLog
from firmware_tools.station_cli import main
from tests.device_agent.fleet_parts import Authority

PROJECT = Path(__file__).parents[2]
PROGRAMS = """
agent() { "$PYTHON" -m device_agent "$@"; }
station() { "$PYTHON" -m firmware_tools.station_cli "$@"; }
tools() { "$PYTHON" -m firmware_tools.cli "$@"; }
"""
INIT = 'init --device-id cam-7 --est https://h --mqtt h:1 --ca "$CA"'
PROVISION = '--port x --est https://h --cert "$CERT" --key "$KEY" --ca "$CA" --device-id a'


@pytest.fixture
def shell(tmp_path: Path, authority: Authority) -> "Shell":
    return Shell(tmp_path, authority)


class Shell:
    """bash in an empty directory; python's -W stays out of the way."""

    def __init__(self, folder: Path, authority: Authority) -> None:
        self.folder = folder
        cert_file, key_file = authority.client("line-1")
        files = {"CA": authority.ca_file, "CERT": cert_file, "KEY": key_file}
        self.environment = {
            **{name: value for name, value in os.environ.items() if name not in ("DEVICE_HOME", "PYTHONWARNINGS")},
            **{name: str(file) for name, file in files.items()},
            "PYTHON": sys.executable,
            "PYTHONPATH": str(PROJECT),
        }

    def __call__(self, line: str) -> tuple[int, str, str]:
        """Exit code, stdout and stderr of `line`."""
        done = subprocess.run(
            ["bash", "-c", f'{PROGRAMS}\neval "$0"', line],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            timeout=60,
            check=False,
        )
        out, err = done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
        assert "Traceback" not in err, err
        return done.returncode, out, err


@pytest.mark.parametrize("command", ["agent --help", "station --help", "tools vectors"])
def test_an_output_that_cannot_be_written_is_an_error(shell: Shell, command: str) -> None:
    assert shell(f"{command} >/dev/full")[::2] == (1, "Error: standard output: no space left on device.\n")
    assert shell(f"{command} >&-")[::2] == (1, "Error: standard output: it is closed.\n")
    assert shell(f"{command} 2>&- <&-")[0] == 0


def test_a_reader_that_has_seen_enough_is_no_error(shell: Shell) -> None:
    assert shell("{ sleep 0.5; tools vectors; } | true; exit ${PIPESTATUS[0]}") == (141, "", "")


def test_what_was_done_is_done_though_it_cannot_be_said(shell: Shell) -> None:
    assert shell(f"agent --home home {INIT} >/dev/full")[0] == 1
    assert (shell.folder / "home" / "agent.toml").exists()


def test_a_deleted_working_directory_is_said(shell: Shell) -> None:
    line = 'mkdir gone; cd gone; rmdir "$PWD"; agent status --home home'
    assert shell(line) == (1, "", "Error: the working directory has been deleted.\n")


def test_without_a_working_directory_absolute_paths_do(shell: Shell) -> None:
    gone = 'mkdir gone; cd gone; rmdir "$PWD"'
    assert shell(f"{gone}; agent --home {shell.folder}/home {INIT}")[0] == 0
    code, _, err = shell(f"{gone}; agent run --home {shell.folder}/home")
    assert (code, "no certificate yet" in err) == (1, True)


BYTE = "\udcff"  # how Python shows an octet that is not UTF-8
AGENT_INIT = ["init", "--home", "HOME", "--device-id", "cam-7", "--est", "https://h", "--mqtt", "h:1", "--ca", "CA"]
STATION = ["provision", "--port", "x", "--est", "https://h", "--cert", "CERT", "--key", "KEY", "--ca", "CA"]
STATION += ["--device-id", "a"]


@pytest.mark.parametrize(
    ("program", "words"),
    [
        (cli, [*AGENT_INIT, "--device-id", BYTE]),
        (cli, [*AGENT_INIT, "--hardware-serial", BYTE]),
        (cli, [*AGENT_INIT, "--est", f"https://{BYTE}"]),
        (cli, [*AGENT_INIT, "--est", "https://a..b"]),
        (cli, [*AGENT_INIT, "--mqtt", BYTE]),
        (cli, [*AGENT_INIT, "--ca", "/etc/passwd"]),
        (cli, [*AGENT_INIT, "--ca", BYTE]),
        (cli, ["send", "--home", "HOME", BYTE, "x"]),
        (cli, ["send", "--home", "HOME", "a/+", "x"]),
        (cli, ["run", "--home", "HOME", "--publish", "a/#"]),
        (cli, ["status"]),
        (cli, ["emulate", "--pty", "port"]),
        (cli, [BYTE]),
        (main, [*STATION, "--model", BYTE]),
        (main, [*STATION, "--device-id", BYTE]),
        (main, [*STATION, "--mqtt", "h:0"]),
        (main, [*STATION, "--cert", "/etc/passwd"]),
        (main, [*STATION, "--key", "CA"]),
        (main, [*STATION, "--ca", "/etc/passwd"]),
    ],
)
def test_wrong_usage_exits_2(
    tmp_path: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch, program: click.Group, words: list[str]
) -> None:
    monkeypatch.delenv("DEVICE_HOME", raising=False)
    cert_file, key_file = authority.client("line-1")
    files = {"HOME": tmp_path / "home", "CERT": cert_file, "KEY": key_file, "CA": authority.ca_file}
    done = CliRunner().invoke(program, [str(files.get(word, word)) for word in words])
    assert (done.exit_code, done.stdout) == (2, ""), done.output
    assert "Error: " in done.stderr
    assert "cryptography.io" not in done.stderr  # a library's own sentence
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize("words", [["--approval", "--model", BYTE], ["--token-env", "NO_SUCH"], []])
def test_wrong_usage_of_enroll_exits_2(tmp_path: Path, authority: Authority, words: list[str]) -> None:
    files = {"HOME": tmp_path / "home", "CA": authority.ca_file}
    assert CliRunner().invoke(cli, [str(files.get(word, word)) for word in AGENT_INIT]).exit_code == 0
    assert CliRunner().invoke(cli, ["enroll", "--home", str(tmp_path / "home"), *words]).exit_code == 2


def test_a_home_may_have_any_name(shell: Shell) -> None:
    assert shell(f"agent {INIT} --home $'h\\xffe'")[0] == 0
    code, out, _ = shell("agent status --home $'h\\xffe'")
    assert (code, "not enrolled" in out) == (1, True)
    assert "no certificate yet" in shell("agent run --home $'h\\xffe'")[2]


def test_home_stands_before_or_after_the_command(shell: Shell) -> None:
    assert shell(f"agent {INIT} --home one")[0] == 0
    assert shell(f"agent --home two {INIT}")[0] == 0
    assert shell(f"DEVICE_HOME=three agent {INIT}")[0] == 0
    assert shell(f"DEVICE_HOME=three agent --home two {INIT} --home four")[0] == 0  # the nearest wins
    assert sorted(path.name for path in shell.folder.iterdir() if path.is_dir()) == ["four", "one", "three", "two"]
    outs = {shell(line)[1] for line in ("agent status --home one -o json", "agent --home one status -o json")}
    assert len(outs) == 1


def test_a_closed_input_has_no_lines_to_publish(shell: Shell) -> None:
    assert shell(f"agent {INIT} --home home")[0] == 0
    said = "Error: Standard input is closed. Leave out --publish and --stdin, or pass an input.\n"
    assert shell("agent run --home home --stdin <&-") == (1, "", said)
    assert shell('"$PYTHON" -m device_agent.run --home home --publish t <&-') == (1, "", said)
    assert shell("agent run --home home --stdin <&- 2>&-") == (1, "", "")
    assert shell("agent run --home home 2>/dev/full")[0] == 1


def test_no_socket_of_the_agent_becomes_a_standard_stream(shell: Shell) -> None:
    """A log line must not go to a server."""
    code = "import os, device_agent.run as run; run._open_standard_streams(); n = os.open('/dev/null', 0); "
    code += "print(n, file=open('n', 'w'))"
    assert shell(f'"$PYTHON" -c "{code}" <&- >&- 2>&-')[0] == 0
    assert int((shell.folder / "n").read_text()) > 2


def test_warnings_of_libraries_are_not_shown(shell: Shell) -> None:
    """Not by the child that enrolls, which the agent's log would repeat, unless they are asked for."""
    (shell.folder / "sitecustomize.py").write_text(
        "import sys\nclass Finder:\n    def find_spec(self, name, *_):\n"
        "        if name in ('fleet.est_client.client', 'paho.mqtt'):\n"
        "            import warnings\n            warnings.warn('the library is unhappy', UserWarning)\n"
        "sys.meta_path.insert(0, Finder())\n"
    )
    shell.environment["PYTHONPATH"] = f"{shell.folder}:{PROJECT}"
    assert shell(f"agent {INIT} --home home")[0] == 0
    code, _, err = shell("echo a.b | agent enroll --home home")
    assert (code, "unhappy" in err) == (1, False)
    assert "unhappy" in shell("export PYTHONWARNINGS=always; echo a.b | agent enroll --home home")[2]
    assert "unhappy" not in shell("agent run --home home")[2]


# The log


def test_a_log_that_cannot_be_written_ends_and_the_agent_goes_on() -> None:
    class Full(io.TextIOWrapper):
        written = 0

        def write(self, text: str) -> int:
            self.written += 1
            return super().write(text)

        def close(self) -> None:
            """What is in its buffer fits nowhere."""

    with open("/dev/full", "wb", buffering=0) as device:
        full = Full(io.BufferedWriter(device))
        log = EventLog(stream=full)
        log.event("started")
        once = full.written
        log.event("started")
        assert full.written == once > 0


def test_an_error_without_a_text_is_logged_by_its_name() -> None:
    lines = io.StringIO()
    EventLog(stream=lines).event("certificate-switch-failed", reason=TimeoutError(), slot="")
    assert lines.getvalue().endswith(' certificate-switch-failed reason=TimeoutError slot=""\n')


def test_a_closed_log_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    EventLog().event("started")
