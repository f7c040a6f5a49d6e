"""`fleet retention` on a real home."""

import json
from pathlib import Path

from click.testing import CliRunner, Result

from fleet.cli import main


def run_fleet(home: Path, *words: str, expect: int = 0) -> Result:
    done = CliRunner().invoke(main, words, env={"FLEET_HOME": str(home)})
    assert done.exit_code == expect, (done.stdout, done.stderr, done.exception)
    return done


def test_nothing_is_due_in_a_young_home(home: Path) -> None:
    run_fleet(home, "device", "add", "cam-7", "--model", "default")
    for words in (("--dry-run",), ()):
        done = json.loads(run_fleet(home, "retention", "run", *words, "-o", "json").stdout)
        assert done == {"dry_run": bool(words), "events": 0, "audit": 0, "certificates": 0, "files": []}
    assert json.loads(run_fleet(home, "retention", "check", "-o", "json").stdout) == []


def test_a_spoiled_archive_fails_the_check(home: Path) -> None:
    (home / "archive").mkdir()
    (home / "archive" / "audit-000000000001-000000000256.jsonl").write_text("{}\n")
    assert "is damaged" in run_fleet(home, "retention", "check", expect=1).stderr


def test_settings_are_named_with_their_line(home: Path) -> None:
    settings = home / "fleet.toml"
    settings.write_text(settings.read_text().replace("audit_days = 0", "audit_days = -1"))
    assert "retention.audit_days must be a whole number" in run_fleet(home, "retention", "run", expect=1).stderr
