"""`fleet forecast` on a real home: for people, for programs, for cron."""

import json
from pathlib import Path

from click.testing import CliRunner, Result

from fleet.cli import main


def run_fleet(home: Path, *words: str, expect: int = 0) -> Result:
    done = CliRunner().invoke(main, words, env={"FLEET_HOME": str(home)})
    assert done.exit_code == expect, (done.stdout, done.stderr, done.exception)
    return done


def test_nothing_to_warn_of(home: Path) -> None:
    assert run_fleet(home, "forecast", "--check").stdout.split() == ["WEEK", "DEVICES", "TOKENS", "AUTHORITIES"]
    seen = json.loads(run_fleet(home, "forecast", "-o", "json", "--weeks", "60").stdout)
    assert (seen["devices"], seen["overdue"], seen["warnings"], len(seen["weeks"])) == (0, 0, [], 60)
    assert [week["authorities"] for week in seen["weeks"] if week["authorities"]] == [["server"]]


def test_a_warning_fails_a_check_and_nothing_else(home: Path) -> None:
    run_fleet(home, "model", "add", "old", "--lifetime", "3650d")
    seen = run_fleet(home, "forecast")
    assert "Warning: Certificates of model old are cut already" in seen.stderr
    assert "Warning" in run_fleet(home, "forecast", "--check", expect=1).stderr
    (warning,) = json.loads(run_fleet(home, "forecast", "--check", "-o", "json", expect=1).stdout)["warnings"]
    assert warning["code"] == "authority-cuts-certificates"
