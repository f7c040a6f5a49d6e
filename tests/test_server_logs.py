"""A failing test shows the logs of its servers, and leaves no server behind."""

import os
import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).parents[1]
FAILING = """
import subprocess, sys
from pathlib import Path
import pytest
from tests.serving import Served

@pytest.fixture
def served(tmp_path):
    serving = Served(tmp_path / "no home", tmp_path / "ready.json")
    try:
        yield serving.start()
    finally:
        assert serving.process.returncode is not None

def test_set_up_fails(served):
    pass

def test_a_program_that_writes_to_a_file(tmp_path):
    with (tmp_path / "its.log").open("w") as log:
        subprocess.run([sys.executable, "-c", "print('line of the log')"], stdout=log, check=True)
    raise AssertionError

def test_that_has_nothing_to_do_with_it():
    raise AssertionError("alone")
"""


def test_the_logs_are_shown(tmp_path: Path) -> None:
    (tmp_path / "test_failing.py").write_text(FAILING)
    words = ("-p", "tests.conftest", "-c", "pyproject.toml", "--rootdir", tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words, tmp_path],
        capture_output=True,
        text=True,
        cwd=PROJECT,
        env=dict(os.environ, PYTHONPATH=str(PROJECT)),
        check=False,
    )
    assert "2 failed, 1 error" in done.stdout, done.stdout
    first, _, rest = done.stdout.partition("test_a_program_that_writes_to_a_file")
    assert "log of fleet serve" in first
    assert "Error: There is no fleet at" in first or "no home" in first.partition("log of fleet serve")[2]
    assert "its.log" in rest
    assert "line of the log" in rest.partition("log of python")[2]
    assert "log of" not in rest.partition("test_that_has_nothing_to_do_with_it")[2].partition("short test summary")[0]
