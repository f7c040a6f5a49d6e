"""`fleet backup` and `fleet restore` as a person types them."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from fleet.cli import main


@pytest.fixture
def home(tmp_path: Path) -> Path:
    run_fleet(tmp_path / "home", "init", str(tmp_path / "home"))
    (tmp_path / "pass").write_text("correct horse\n")
    return tmp_path / "home"


def run_fleet(home: Path, *words: str, expect: int = 0) -> Result:
    done = CliRunner().invoke(main, words, env={"FLEET_HOME": str(home), "PASS": "correct horse"})
    assert done.exit_code == expect, (words, done.stdout, done.stderr, done.exception)
    return done


def test_save_check_restore(home: Path, tmp_path: Path) -> None:
    run_fleet(home, "device", "add", "cam-7", "--model", "default")
    file, passphrase = str(tmp_path / "b"), ("--password-file", str(tmp_path / "pass"))
    saved = json.loads(run_fleet(home, "backup", file, *passphrase, "-o", "json").stdout)
    assert (saved["sealed"], saved["audit_head"].split(":")[0]) == (True, "3")
    checked = json.loads(run_fleet(home, "backup", "check", file, "--password-env", "PASS", "-o", "json").stdout)
    assert checked["ok"]
    assert {key: saved[key] for key in ("taken_at", "audit_head", "members")}.items() <= checked.items()
    run_fleet(home, "device", "revoke", "cam-7")  # no server runs: the command itself notes it
    run_fleet(home, "device", "add", "cam-8", "--model", "default")
    run_fleet(home, "device", "add", "cam-9", "--model", "default")
    run_fleet(home, "device", "revoke", "cam-9")
    second, log = tmp_path / "home2", str(home / "state" / "revocations.jsonl")
    refused = run_fleet(home, "restore", file, str(second), *passphrase, expect=1)
    assert "Give --revocations OLD_HOME/state/revocations.jsonl" in refused.stderr
    done = run_fleet(home, "restore", file, str(second), *passphrase, "--revocations", log, "-o", "json")
    assert json.loads(done.stdout)["devices_out_again"] == 1
    assert "Not known to the backup; register them, and give each a token: cam-8\n" in done.stderr
    assert "they stay revoked, under the model restore-barred: cam-9\n" in done.stderr
    assert json.loads(run_fleet(second, "device", "show", "cam-7", "-o", "json").stdout)["state"] == "revoked"
    run_fleet(second, "audit", "verify", "--head", saved["audit_head"])


def test_plain_says_what_it_is(home: Path, tmp_path: Path) -> None:
    file = str(tmp_path / "b.tar")
    assert "holds the fleet's private keys" in run_fleet(home, "backup", "take", file, "--plain").stderr
    assert "sealed:" in run_fleet(home, "backup", "check", file).stdout
    for words in (("backup", "check", file), ("restore", file, str(tmp_path / "h"), "--no-revocations-after-backup")):
        assert "not encrypted" in run_fleet(home, *words, "--password-env", "PASS", expect=1).stderr
    done = run_fleet(home, "restore", file, str(tmp_path / "home2"), "--no-revocations-after-backup")
    assert "Warning: devices suspended: 0." in done.stderr
    assert "\ndevices out of service again: 0\n" in done.stdout
    assert "\napprovals withdrawn:" in done.stdout


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("backup", "{}/b"), 1, "--password-file FILE"),
        (("backup", "{}/pass", "--plain"), 1, "there already"),
        (("backup", "{}/b", "--plain", "--password-env", "PASS"), 2, "not both"),
        (("backup", "{}/b", "--password-env", "NOTHING"), 1, "not set"),
        (("backup", "check", "{}/pass"), 1, "damaged"),
        (("backup", "check", "{}/none"), 1, "Check the path"),
        (("backup", "check", "{}/home/fleet.toml"), 1, "Error: checking"),
        (("restore", "{}/b", "{}/h", "--no-revocations-after-backup", "--revocations", "{}/pass"), 2, "not both"),
        (("restore", "{}/nothing", "{}/h"), 1, "no such file or directory"),
    ],
)
def test_refused(home: Path, tmp_path: Path, words: tuple[str, ...], code: int, says: str) -> None:
    assert says in run_fleet(home, *(word.format(tmp_path) for word in words), expect=code).stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "pass"]


def test_help_shows_both_ways(home: Path) -> None:
    assert "fleet backup check FILE" in run_fleet(home, "backup", "--help").stdout
    assert "--plain" in run_fleet(home, "backup", "take", "--help").stdout
