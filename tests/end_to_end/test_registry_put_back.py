"""A registry that goes back to an older state, under a running server and over a restart."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from fleet.est_client.client import EstClient, Policy
from fleet.est_client.errors import EstRefused
from tests.end_to_end.live_device import LiveDevice, csr_for, mqtt_answer, renewal_with
from tests.serving import Served, run_fleet


def copy(source: Path, to: Path) -> None:
    """The database `source` in place of `to`, with the locks that a running server honours."""
    with closing(sqlite3.connect(source)) as old, closing(sqlite3.connect(to, timeout=30)) as new:
        old.backup(new)


def refusal(served: Served, device: LiveDevice) -> str:
    """Why EST refuses to renew the certificate of `device`; "" when it does not."""
    try:
        renewal_with(served, device.pair()).simplereenroll(csr_for(device.name))
    except EstRefused as error:
        return str(error)
    return ""


def test_every_listener_holds_to_a_revocation_that_the_registry_has_forgotten(served: Served, tmp_path: Path) -> None:
    out, other = LiveDevice(served, tmp_path, "cam-7"), LiveDevice(served, tmp_path, "cam-8")
    registry, old = served.home / "registry.db", tmp_path / "old.db"
    assert [mqtt_answer(served, each.pair(), each.name) for each in (out, other)] == [0, 0]
    token = run_fleet(served.home, "token", "create", "--device", "cam-7").strip()
    copy(registry, old)
    run_fleet(served.home, "device", "revoke", "cam-7", "--reason", "stolen")
    assert "device-revoked" in refusal(served, out) or "certificate-revoked" in refusal(served, out)

    copy(old, registry)
    assert "revoked" in refusal(served, out)
    with pytest.raises(EstRefused):
        EstClient(served.est, served.ca_file, basic=("cam-7", token), policy=Policy(patience_seconds=0)).simpleenroll(
            csr_for("cam-7")
        )
    assert mqtt_answer(served, out.pair(), "cam-7") == 5
    served.wait_for_line("event=revocations.written-back")
    assert json.loads(run_fleet(served.home, "device", "show", "cam-7", "-o", "json"))["state"] == "revoked"
    assert refusal(served, other) == ""
    served.stop()

    # Put back once more, and gone on from there: the number of its newest event says nothing any more.
    copy(old, registry)
    with closing(sqlite3.connect(registry)) as db, db:
        newest = db.execute("SELECT max(seq) FROM event").fetchone()[0]
        db.executemany(
            "INSERT INTO event (seq, kind, subject, detail) VALUES (?, 'device.tagged', 'cam-8', '')",
            [(newest + number,) for number in range(1, 40)],
        )
    served.start()
    assert "revoked" in refusal(served, out)
    assert [mqtt_answer(served, each.pair(), each.name) for each in (out, other)] == [5, 0]
    assert json.loads(run_fleet(served.home, "device", "show", "cam-7", "-o", "json"))["state"] == "revoked"
    run_fleet(served.home, "audit", "verify")
