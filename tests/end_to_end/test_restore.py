"""The home is lost and restored from a backup: who was put out stays out, who is not known comes back with a token."""

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.end_to_end.live_device import LiveDevice, mqtt_answer
from tests.serving import Served, program, run_fleet, same_ports


@pytest.fixture
def password_file(tmp_path: Path) -> Path:
    file = tmp_path / "backup.pass"
    file.write_text("correct horse battery staple\n")
    return file


@pytest.fixture
def ports() -> Sequence[str]:
    return same_ports()


@pytest.fixture
def second(served: Served, tmp_path: Path) -> Iterator[Served]:
    """Not started yet: what will serve in place of `served`, where it did."""
    serving = Served(tmp_path / "home 2", tmp_path / "ready 2.json", served.words)
    yield serving
    if serving.running is not None:
        serving.stop()


def test_the_restored_server_lets_in_whom_the_lost_one_did(
    served: Served, second: Served, tmp_path: Path, password_file: Path
) -> None:
    revoked, spared = LiveDevice(served, tmp_path, "cam-7"), LiveDevice(served, tmp_path, "cam-8")
    backup, passphrase = str(tmp_path / "fleet.backup"), ("--password-file", str(password_file))
    run_fleet(served.home, "backup", backup, *passphrase)  # while it is served
    run_fleet(served.home, "device", "revoke", "cam-7", "--reason", "lost")
    late = LiveDevice(served, tmp_path, "cam-9")
    assert [mqtt_answer(served, each.pair(), each.name) for each in (revoked, spared, late)] == [5, 0, 0]
    served.kill()
    log = tmp_path / "revocations.jsonl"
    shutil.copy(served.home / "state" / "revocations.jsonl", log)
    shutil.rmtree(served.home)

    restored = json.loads(
        run_fleet(
            second.home, "restore", backup, str(second.home), *passphrase, "--revocations", str(log), "-o", "json"
        )
    )
    assert (restored["devices_out_again"], restored["unknown"]) == (1, ["cam-9"])
    second.start()
    assert [mqtt_answer(second, each.pair(), each.name) for each in (revoked, spared, late)] == [5, 0, 5]
    codes = {
        row["subject"]: row["outcome"] for row in json.loads(run_fleet(second.home, "audit", "list", "-o", "json"))
    }
    assert (codes["device cam-7"], codes["device cam-9"]) == ("device-revoked", "certificate-unknown")
    run_fleet(second.home, "audit", "verify")

    run_fleet(second.home, "device", "add", "cam-9", "--model", "default")
    late.call("enroll", "--again", give=run_fleet(second.home, "token", "create", "--device", "cam-9"))
    late.run()
    late.stop()


def test_a_registry_that_was_put_back_by_hand_is_not_served(served: Served, tmp_path: Path) -> None:
    device = LiveDevice(served, tmp_path, "cam-7")
    assert mqtt_answer(served, device.pair(), "cam-7") == 0
    served.stop()
    old = tmp_path / "old.db"
    shutil.copy(served.home / "registry.db", old)
    run_fleet(served.home, "device", "revoke", "cam-7")
    for left in served.home.glob("registry.db*"):
        left.unlink()
    shutil.copy(old, served.home / "registry.db")
    said = program("fleet", "serve", *served.words, home=served.home, expect=1).stderr
    assert "an older registry was put in its place" in said
    assert "fleet restore FILE NEW_HOME --revocations" in said
