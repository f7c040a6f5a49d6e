"""kill -9 of the node that publishes CRLs, within a round: the next one publishes the revocation, and numbers grow."""

import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from fleet.config.settings import Settings
from fleet.domain.distribution import full_crl_path, shard_crl_path, shard_of
from fleet.home.creation import create_home
from fleet.home.layout import open_registry
from fleet.services.crl_publishing import LEASE_TIME
from fleet.storage.journals.revoked_certificates import RevokedCertificates
from tests.faults import dying_publisher
from tests.home.crl_fleet import NOW, CrlFleet, number_of, serial

long = pytest.mark.long
KILLS = [
    pytest.param("store_entries", "before", marks=long),  # the row alone is there, and the journal's line
    pytest.param("store_entries", "after", marks=long),  # with its entry, in no CRL
    ("publish_crls", "before"),
    ("publish_crls", "after"),  # nothing was dropped, and the lease is held by the dead
    pytest.param("drop_revoked", "before", marks=long),
]


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[CrlFleet]:
    home = await create_home(tmp_path / "home", Settings(), NOW - timedelta(days=1))
    registry = await open_registry(home)
    yield CrlFleet(home, registry, dying_publisher.POLICY, dying_publisher.NODE)
    await registry.close()


@pytest.mark.parametrize(("step", "when"), KILLS)
async def test_a_revocation_outlives_the_publisher(fleet: CrlFleet, step: str, when: str) -> None:
    one = await fleet.enroll("cam-1")
    await fleet.publish()
    number = number_of(await fleet.crl())
    await fleet.move("revoke", "cam-1")
    # Of what has expired nothing is dropped before the CRLs are due.
    fleet.now += timedelta(hours=13) if step == "drop_revoked" else LEASE_TIME / 2
    words = [sys.executable, "-m", dying_publisher.__name__, str(fleet.home.path), step, when, fleet.now.isoformat()]
    killed = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert await fleet.registry.revocation(one.serial) is not None
    assert one.serial in RevokedCertificates(fleet.home.revoked_certificates).read(fleet.now)
    shard = shard_crl_path(fleet.issuing, shard_of(serial(one), 4), 4)
    is_published = step == "drop_revoked" or (step, when) == ("publish_crls", "after")
    assert (await fleet.listed(shard) != {}) is is_published
    other = replace(fleet, node="node-2")
    assert await other.publish() == {}  # until the lease has run out
    other.now += LEASE_TIME
    await other.publish()
    for path in (shard, full_crl_path(fleet.issuing)):
        assert await other.listed(path) == {serial(one): "unspecified"}
        assert number_of(await other.crl(path)) > number
    assert await other.registry.unpublished() == []
    assert await other.registry.pending_revocations(9) == []
