"""The command, as a person runs it."""

import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from hw_bench.cli import OWN_OPTIONS, main
from hw_bench.cpu_time import process_tree
from hw_bench.scenarios.catalog import SCENARIOS

pytestmark = pytest.mark.usefixtures("forked_programs")
END_SECONDS_MAX = 120


def test_list() -> None:
    result = CliRunner().invoke(main, ["list"])
    assert result.exit_code == 0
    assert all(name in result.stdout for name in SCENARIOS)


def test_list_for_programs() -> None:
    result = CliRunner().invoke(main, ["list", "-o", "json"])
    assert [row["name"] for row in json.loads(result.stdout)] == list(SCENARIOS)


def test_help() -> None:
    result = CliRunner().invoke(main, ["run", "--help"])
    assert result.exit_code == 0
    assert {
        "--seconds",
        "--rounds",
        "--devices",
        "--kills",
        "--seed",
        "--sessions",
        "--database",
        "--keep",
        "--output",
    } <= set(result.stdout.replace(",", " ").split())


@pytest.mark.parametrize(
    "words",
    [["run", "nothing"], ["run", "handshakes", "--seconds", "0"], ["run", "handshakes", "--rounds", "0"], ["run"]]
    + [["run", "enroll", *words] for words in (["--kills", "5"], ["--seed", "1"], ["--database", "sqlite"])]
    + [["run", "crash", *words] for words in (["--kills", "0"], ["--seed", "-1"], ["--devices", "1000"])]
    + [
        ["run", "revocation", "--sessions", "1"],
        ["run", "registry", "--sessions", "2"],
        ["run", "enroll", "--keep", "x"],
    ],
)
def test_used_wrongly(words: list[str]) -> None:
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 2
    assert "Usage:" in result.stderr


def start(folder: Path, *words: str) -> "subprocess.Popen[str]":
    """`hw-bench WORDS`, with `folder` for its temporary files."""
    return subprocess.Popen(
        [sys.executable, "-m", "hw_bench", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=dict(os.environ) | {"TMPDIR": str(folder)},
    )


def test_a_run_for_programs_prints_one_object_and_its_progress_elsewhere(tmp_path: Path) -> None:
    process = start(tmp_path, "run", "handshakes", "--seconds", "0.1", "--rounds", "1", "-o", "json")
    output, progress = process.communicate()
    assert process.returncode == 0, progress
    value = json.loads(output)
    assert {"scenario", "machine", "turns", "summaries", "ratios", "verdicts", "missing", "checks"} <= set(value)
    assert "round 1 of 1: fleet-tls" in progress
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_nothing_behind(tmp_path: Path, number: signal.Signals) -> None:
    process = start(tmp_path, "run", "handshakes", "--seconds", "600")
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("warming up"):
            break
    family = [os.pidfd_open(pid) for pid in process_tree((process.pid,)) if pid != process.pid]
    assert len(family) >= 2  # a server and a driver
    process.send_signal(number)
    _, rest = process.communicate(timeout=END_SECONDS_MAX)
    assert process.returncode == 130
    assert "Interrupted" in rest
    assert select.select(family, [], [], 0)[0] == family
    for handle in family:
        os.close(handle)
    assert list(tmp_path.iterdir()) == []


def test_every_command_on_the_page_is_one() -> None:
    page = (Path(__file__).parents[2] / "hw_bench" / "README.md").read_text()
    commands = [line.split("  ")[0].split() for line in page.splitlines() if line.startswith("hw-bench ")]
    assert {words[1] for words in commands} == {"list", "run"}
    for _, name, *words in commands:
        assert main.commands[name].make_context(name, words).params


def test_an_option_names_the_scenarios_that_it_is_for() -> None:
    result = CliRunner().invoke(main, ["run", "enroll", "--database", "postgres"])
    assert "--database applies to workers, revocation, registry, crash, not to enroll." in result.stderr
    assert {name for names in OWN_OPTIONS.values() for name in names} <= set(SCENARIOS)


def test_an_unknown_engine_is_wrong_use() -> None:
    result = CliRunner().invoke(main, ["run", "crash", "--kills", "1", "--database", "oracle://x"])
    assert result.exit_code == 2
    assert "'oracle://x' is not one of 'sqlite', 'postgres'" in result.stderr


def test_output_that_cannot_be_written_is_an_error() -> None:
    argv = [sys.executable, "-m", "hw_bench", "list"]
    with open("/dev/full", "wb") as full:
        done = subprocess.run(argv, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("Error: ")
    assert "Traceback" not in done.stderr


def test_a_reader_that_stops_reading_ends_it_silently() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    argv = [sys.executable, "-m", "hw_bench", "list", "-o", "json"]
    done = subprocess.run(argv, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_run_that_kills_prints_its_chance_and_can_be_repeated(tmp_path: Path) -> None:
    process = start(tmp_path, "run", "crash", "--kills", "1", "--seed", "11", "-o", "json")
    output, progress = process.communicate()
    assert process.returncode == 0, progress
    assert "seed 11" in progress
    assert "1 of 1 kills" in progress
    assert any("seed 11" in check for check in json.loads(output)["checks"])
    assert list(tmp_path.iterdir()) == []
