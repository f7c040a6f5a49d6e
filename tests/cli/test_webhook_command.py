"""`fleet webhook key`."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from fleet.ca.keys import load_key
from fleet.cli import main


def test_the_same_key_each_time_and_only_its_public_half(home: Path) -> None:
    runs = [CliRunner().invoke(main, ["webhook", "key", "--home", str(home)]) for _ in range(2)]
    assert [run.exit_code for run in runs] == [0, 0]
    assert runs[0].stdout == runs[1].stdout
    key_file = home / "ca" / "webhook.key"
    assert load_pem_public_key(runs[0].stdout.encode()) == load_key(key_file).public_key()
    assert key_file.stat().st_mode & 0o777 == 0o600
    shown = json.loads(CliRunner().invoke(main, ["webhook", "key", "--home", str(home), "-o", "json"]).stdout)
    assert shown["public_key"] == runs[0].stdout
    assert f"keyid {shown['keyid']}" in runs[0].stderr
    assert "PRIVATE" not in runs[0].output


@pytest.mark.parametrize(("mode", "says"), [(0o644, "can be read by others"), (0o600, "no private key")])
def test_a_key_that_cannot_be_used(home: Path, mode: int, says: str) -> None:
    file = home / "ca" / "webhook.key"
    file.write_text("no key")
    file.chmod(mode)
    done = CliRunner().invoke(main, ["webhook", "key", "--home", str(home)])
    assert done.exit_code == 1
    assert says in done.stderr
    assert file.read_text() == "no key"
