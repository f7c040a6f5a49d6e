"""A device with more unused certificates than a first use looks at is answered with each of them; and one whose
certificate is superseded while it is admitted.
"""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from fleet.domain.changes import Change
from fleet.domain.credential import CredentialState
from fleet.domain.ports import EnrollmentFacts, HolderFacts
from fleet.domain.writes import AddCredential
from fleet.services.admission import admit
from fleet.storage.sqlite.registry import SqliteRegistry
from fleet.wire.mqtt.codes import V5, Reason
from fleet.wire.mqtt.connect import Connect, encode_connect
from tests.servers.gateway_fixtures import credential, now, open_gateway, operator, peer_of, populate
from tests.waiting import PATIENCE_SECONDS


@pytest.mark.parametrize("order", [1, -1], ids=["oldest first", "newest first"])
async def test_each_is_admitted_or_refused_at_once(order: int, tmp_path: Path) -> None:
    async with open_gateway(tmp_path) as built:
        await populate(built.registry, "cam-1")
        unused = [credential("cam-1", CredentialState.ISSUED) for _ in range(17)]
        await built.registry.commit(Change(operator("populate"), tuple(AddCredential(each) for each in unused)))
        for held in unused[::order]:
            wire = await built.dial(held)
            wire.send(encode_connect(Connect(V5, "cam-1")))
            answers = {
                asyncio.create_task(wire.packet()),
                asyncio.create_task(asyncio.wait_for(built.broker.sessions.get(), PATIENCE_SECONDS)),
            }
            done, waiting = await asyncio.wait(answers, timeout=PATIENCE_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            assert done
            for task in waiting:
                task.cancel()
        assert "mqtt.connect.internal" not in built.gateway.stats
        assert "mqtt.connect.open-timeout" not in built.gateway.stats


class Raced(SqliteRegistry):
    """A registry in which something happens once, right after a question has been answered."""

    after = ""
    happens: Callable[[], Awaitable[None]]

    async def holder_facts(self, fingerprint: bytes) -> HolderFacts | None:
        facts = await super().holder_facts(fingerprint)
        await self._answered("holder_facts")
        return facts

    async def enrollment_facts(
        self,
        device_id: str,
        token_id: str | None,
        key_sha256: bytes,
        *,
        presented: bytes | None = None,
        earned_by: str | None = None,
        certificate: bytes | None = None,
    ) -> EnrollmentFacts:
        facts = await super().enrollment_facts(
            device_id, token_id, key_sha256, presented=presented, earned_by=earned_by, certificate=certificate
        )
        await self._answered("enrollment_facts")
        return facts

    async def _answered(self, question: str) -> None:
        if question == self.after:
            self.after = ""
            await self.happens()


@pytest.mark.parametrize(
    ("state", "after"),
    [
        (CredentialState.ISSUED, "holder_facts"),
        (CredentialState.ISSUED, "enrollment_facts"),
        (CredentialState.ACTIVE, "holder_facts"),
    ],
)
async def test_one_that_is_superseded_meanwhile_is_refused_at_once(
    state: CredentialState, after: str, tmp_path: Path
) -> None:
    registry = await Raced.open(tmp_path / "registry.db")
    async with open_gateway(tmp_path, registry=registry) as built:
        await populate(registry, "cam-1")
        old, new = credential("cam-1", state), credential("cam-1", CredentialState.ISSUED)
        await registry.commit(Change(operator("populate"), (AddCredential(old), AddCredential(new))))

        async def superseded() -> None:
            await admit(registry, peer_of(new), "cam-1", now())

        registry.after, registry.happens = after, superseded
        _, connack = await built.connect(old, V5)
        assert connack.code == Reason.NOT_AUTHORIZED
        assert registry.after == ""
        (outcome,) = built.gateway.stats
        assert outcome in ("mqtt.connect.certificate-ended", "mqtt.session.credential-ended")
        assert not built.gateway.sessions
