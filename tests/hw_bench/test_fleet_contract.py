"""What the simulated devices rely on: the same tests of the modelled fleet and of a served one, over real TLS."""

import dataclasses
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

import pytest
from cryptography.hazmat.primitives import hashes
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.reasoncodes import ReasonCode

from device_agent.core import Setback
from device_agent.enroll_child import UNRENEWABLE
from device_agent.link.refusals import explained_connack
from device_agent.store.identity_store import CertificateInfo
from fleet.ca.keys import generate_key
from fleet.domain.access import Act
from fleet.domain.model_rules import rules_of
from fleet.domain.rates import RateLimits
from fleet.services import revocation
from fleet.wire.mqtt.codes import V5
from fleet.wire.mqtt.connect import Connect, decode_connack, encode_connect
from fleet.wire.mqtt.properties import Property, value_of
from fleet.wire.mqtt.reader import PacketReader
from hw_bench.simulation.authority import Authority, Rules
from tests.servers.est_fixtures import Identity, renewal_csr
from tests.tenant_fixtures import TenantsHarness, open_tenants
from tests.waiting import until

NAME = "cam-1"
LIFE, GRACE = timedelta(days=90), timedelta(days=7)


@dataclass(frozen=True)
class Refused:
    """Of a renewal: the server's code; whether the agent gives this certificate up; how long it waits."""

    code: str
    ended: bool = False
    waits: bool = False


class Fleet(Protocol):
    """One device, `NAME`, whose certificates are named by their fingerprints. Its model has a grace of `GRACE`."""

    async def enroll(self) -> str: ...
    async def renew(self, shown: str, key: str) -> str | Refused:
        """With the certificate `shown`, for the key of that name."""
        ...

    async def connect(self, shown: str) -> Setback | None:
        """CONNECT, as the agent takes the answer; None: welcome."""
        ...

    async def revoke(self) -> None: ...
    def allow_one_request(self) -> None:
        """More of the device at once are asked to come later."""
        ...

    def pass_time(self, time: timedelta) -> None: ...


@dataclass
class Modelled:
    authority: Authority = field(
        default_factory=lambda: Authority(Rules(life=LIFE, grace=GRACE), datetime(2027, 1, 1, tzinfo=UTC))
    )
    at: float = 0.0

    async def enroll(self) -> str:
        return self.authority.issue(NAME, b"first", self.at).fingerprint

    async def renew(self, shown: str, key: str) -> str | Refused:
        answer = self.authority.renew(NAME, shown, key.encode(), self.at)
        if isinstance(answer, CertificateInfo):
            return answer.fingerprint
        assert answer.refused == (answer.retry_after_seconds == 0)
        return Refused(answer.code, answer.ended, answer.retry_after_seconds > 0)

    async def connect(self, shown: str) -> Setback | None:
        setback = self.authority.setback(NAME, shown, self.at)
        if setback is None:
            self.authority.begins(NAME, shown)
        return setback

    async def revoke(self) -> None:
        self.authority.account(NAME).revoked = True

    def allow_one_request(self) -> None:
        self.authority.rules = dataclasses.replace(self.authority.rules, issued_per_minute_max=1)

    def pass_time(self, time: timedelta) -> None:
        self.at += time.total_seconds()


class Real:
    """`fleet serve`'s own parts in this process: EST and gateway behind their TLS, on one registry."""

    def __init__(self, served: TenantsHarness) -> None:
        self._served = served
        self._held: dict[str, Identity] = {}
        self._keys: dict[str, Any] = {}

    def _hold(self, certificate: Any, key: Any) -> str:
        name: str = certificate.fingerprint(hashes.SHA256()).hex()
        self._held[name] = self._served.identity(certificate, key)
        return name

    async def enroll(self) -> str:
        served = self._served
        await served.set_model("cam", rules_of({"renewal": {"grace_seconds": int(GRACE.total_seconds())}}))
        identity = await served.member(NAME, "cam")
        return self._hold(identity.certificate, identity.key)

    async def renew(self, shown: str, key: str) -> str | Refused:
        made = self._keys.setdefault(key, generate_key())
        answer = await self._served.reenroll(renewal_csr(self._held[shown], made), self._held[shown])
        if answer.status == 200:
            return self._hold(answer.certificates[0], made)
        waits = answer.status == 429 and int(answer.header("Retry-After") or 0) > 0
        return Refused(answer.code, answer.code in UNRENEWABLE, waits)

    async def connect(self, shown: str) -> Setback | None:
        reader, writer = await self._served.connect(self._held[shown], "mqtt")
        try:
            writer.write(encode_connect(Connect(V5, NAME)))
            packets = PacketReader()
            while data := await reader.read(4096):
                for packet in packets.feed(data):
                    answer = decode_connack(bytes(packet.body), V5)
                    said = value_of(answer.properties, Property.REASON_STRING) or ""
                    code = ReasonCode(PacketTypes.CONNACK, identifier=answer.code)
                    return explained_connack(code, SimpleNamespace(ReasonString=said))[0] if answer.code else None
        except OSError:
            pass
        finally:
            writer.close()
        return Setback.REFUSED  # by an alert

    async def revoke(self) -> None:
        registry, worker = self._served.registry, self._served.worker
        await revocation.revoke(registry, NAME, act=Act("test", self._served.clock()), reason="lost")
        assert worker is not None
        newest = await registry.last_event()
        # A CONNECT that the event itself ends is told less than one that the registry refuses.
        await until(lambda: worker.gateway._feed._received == newest)

    def allow_one_request(self) -> None:
        assert self._served.worker is not None
        for server in self._served.worker.http:
            if server.rates is not None:
                server.rates.set_limits(RateLimits(credential_per_second=0.05))

    def pass_time(self, time: timedelta) -> None:
        self._served.now = self._served.clock() + time


@asynccontextmanager
async def open_fleet(kind: str, folder: Path) -> AsyncIterator[Fleet]:
    if kind == "modelled":
        yield Modelled()
        return
    async with open_tenants(folder) as served:
        yield Real(served)


@pytest.fixture(params=["modelled", "real"])
async def fleet(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Fleet]:
    async with open_fleet(request.param, tmp_path) as opened:
        yield opened


async def renewed(fleet: Fleet, shown: str, key: str) -> str:
    answer = await fleet.renew(shown, key)
    assert isinstance(answer, str), answer
    return answer


async def test_one_key_gets_one_certificate(fleet: Fleet) -> None:
    first = await fleet.enroll()
    assert await fleet.connect(first) is None
    second = await renewed(fleet, first, "b")
    assert second != first
    assert await renewed(fleet, first, "b") == second
    assert await renewed(fleet, first, "c") != second


async def test_a_device_that_renews_without_end_is_asked_to_come_later(fleet: Fleet) -> None:
    first = await fleet.enroll()
    made = {await renewed(fleet, first, f"key {number}") for number in range(23)}
    assert len(made) == 23
    assert await fleet.renew(first, "another") == Refused("certificate-budget", ended=False, waits=True)
    assert await renewed(fleet, first, "key 22") in made
    fleet.pass_time(timedelta(hours=1))
    await renewed(fleet, first, "another")
    assert await fleet.renew(first, "one more") == Refused("certificate-budget", ended=False, waits=True)


async def test_both_are_good_until_the_new_one_is_used(fleet: Fleet) -> None:
    first = await fleet.enroll()
    second = await renewed(fleet, first, "b")
    assert await fleet.connect(first) is None
    assert await fleet.connect(second) is None
    assert await fleet.connect(first) is Setback.REFUSED
    assert await fleet.renew(first, "c") == Refused("certificate-superseded", ended=True)
    assert await fleet.connect(second) is None


async def test_a_renewal_is_a_use_too(fleet: Fleet) -> None:
    first = await fleet.enroll()
    second = await renewed(fleet, first, "b")
    third = await renewed(fleet, second, "c")
    assert await fleet.connect(first) is Setback.REFUSED
    assert await fleet.renew(first, "d") == Refused("certificate-superseded", ended=True)
    assert await fleet.connect(second) is None
    assert await fleet.connect(third) is None


async def test_of_two_successors_the_later_one_counts(fleet: Fleet) -> None:
    """The answer to a renewal was lost with its key, and the next attempt had another one."""
    first = await fleet.enroll()
    await fleet.connect(first)
    lost, second = await renewed(fleet, first, "lost"), await renewed(fleet, first, "b")
    assert await fleet.connect(lost) is Setback.REFUSED  # before the other is used, too
    assert await fleet.renew(lost, "c") == Refused("certificate-superseded", ended=True)
    assert await fleet.connect(first) is None
    assert await fleet.connect(second) is None
    assert await fleet.connect(first) is Setback.REFUSED


async def test_a_revoked_device_is_refused_for_good(fleet: Fleet) -> None:
    first = await fleet.enroll()
    assert await fleet.connect(first) is None
    second = await renewed(fleet, first, "b")
    await fleet.revoke()
    for shown in (first, second):
        assert await fleet.connect(shown) is Setback.ENDED
        assert await fleet.renew(shown, "c") == Refused("device-revoked", ended=True)


async def test_an_expired_certificate_renews_within_the_grace_and_does_not_connect(fleet: Fleet) -> None:
    first = await fleet.enroll()
    assert await fleet.connect(first) is None
    fleet.pass_time(LIFE + GRACE / 2)
    assert await fleet.connect(first) is Setback.REFUSED
    second = await renewed(fleet, first, "b")
    assert await fleet.connect(second) is None
    assert await fleet.renew(first, "c") == Refused("certificate-superseded", ended=True)


async def test_after_the_grace_it_is_over(fleet: Fleet) -> None:
    first = await fleet.enroll()
    fleet.pass_time(LIFE + GRACE + timedelta(days=1))
    assert await fleet.connect(first) is Setback.REFUSED
    assert await fleet.renew(first, "b") == Refused("certificate-expired", ended=True)


async def test_who_asks_too_often_is_told_to_wait(fleet: Fleet) -> None:
    first = await fleet.enroll()
    fleet.allow_one_request()
    fleet.pass_time(timedelta(days=30))
    second = await renewed(fleet, first, "b")
    assert await fleet.renew(first, "c") == Refused("too-many-requests", waits=True)
    assert await fleet.connect(second) is None
