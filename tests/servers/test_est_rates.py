"""Too many requests, over real TLS: who waits, and who does not."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fleet.domain.access import Act
from fleet.domain.rates import RateLimits, Rates
from fleet.services import revocation
from fleet.services.refusal_rows import write_due
from fleet.tls.errors import Refusal
from fleet.tls.limits import ListenerLimits
from fleet.tls.listener import listen
from tests.servers.est_fixtures import EstHarness, basic, csr_for, open_est, renewal_csr

CACERTS = "/.well-known/est/cacerts"


@pytest.fixture
async def est(tmp_path: Path) -> AsyncIterator[EstHarness]:
    async with open_est(tmp_path) as est:
        limits = RateLimits(address_per_second=3.0, credential_per_second=1.0, failures_max=3)
        est.servers["est"].rates = Rates(limits)
        yield est


async def test_an_address_that_asks_too_often_is_told_when_to_come_again(est: EstHarness) -> None:
    # At once, and three times the burst: a machine too busy for that within 20 s passes no test here.
    answers = await asyncio.gather(*(est.send("GET", CACERTS) for _ in range(90)))
    assert 200 in {answer.status for answer in answers}
    late = [answer for answer in answers if answer.status != 200]
    assert late
    assert {(answer.status, answer.code) for answer in late} == {(429, "too-many-requests")}
    assert int(late[0].header("Retry-After") or "") >= 1
    assert est.servers["est"].counters["429 too-many-requests"] == len(late)
    rows = [row.entry for row in await est.registry.audit() if row.entry.outcome == "too-many-requests"]
    assert [(row.actor, row.action, row.address) for row in rows] == [("nobody", "est.request", "127.0.0.1")]
    await write_due(est.registry, est.clock(), at_once=True)
    rows = [row.entry for row in await est.registry.audit() if row.entry.outcome == "too-many-requests"]
    assert sum(1 + int(row.detail.get("left_out", "0")) for row in rows) == len(late)


async def test_a_refused_token_waits_and_its_neighbors_do_not(est: EstHarness) -> None:
    await est.device("cam-1")
    good, spent = await est.token("cam-1"), await est.token(model="cam")
    assert (await est.enroll(csr_for("cam-2"), basic(spent))).status == 200
    codes = [(await est.enroll(csr_for("cam-3"), basic(spent))).code for _ in range(5)]
    assert codes == ["token-used-up"] * 3 + ["too-many-requests"] * 2
    # Whatever its secret: the waiting is the token's.
    wrong = f"{spent.partition('.')[0]}.{'0' * 40}"
    assert (await est.enroll(csr_for("cam-3"), basic(wrong))).code == "too-many-requests"
    assert (await est.enroll(csr_for("cam-1"), basic(good))).status == 200


async def test_a_revoked_device_that_knocks_and_knocks(est: EstHarness) -> None:
    device, other = await est.enrolled("cam-1"), await est.enrolled("cam-2")
    await revocation.revoke(est.registry, "cam-1", act=Act("test", est.clock()), reason="test")
    codes = [(await est.reenroll(renewal_csr(device), device)).code for _ in range(5)]
    assert codes == ["device-revoked"] * 3 + ["too-many-requests"] * 2
    assert (await est.reenroll(renewal_csr(other), other)).status == 200
    rows = [row.entry for row in await est.registry.audit() if row.entry.outcome == "too-many-requests"]
    assert [(row.actor, row.action) for row in rows] == [("device cam-1", "est.request")]


async def test_connections_of_one_address_are_counted_before_anything_is_spent_on_them(est: EstHarness) -> None:
    limits = ListenerLimits(per_address_per_second=1.0)
    contexts = est.listeners["est"].contexts
    est.servers["est"].rates = None
    listener = await listen(est.servers["est"], ("127.0.0.1", 0), contexts=contexts, limits=limits)
    est.listeners["est"], kept = listener, est.listeners["est"]
    try:
        came = 0
        for _ in range(14):
            try:
                came += (await est.send("GET", CACERTS)).status == 200
            except (ConnectionError, IndexError):
                continue
        assert 10 <= came <= 12
        assert listener.stats.refused[Refusal.ADDRESS_RATE] == 14 - came
    finally:
        est.listeners["est"] = kept
        listener.close()


async def test_connections_that_ask_nothing_do_not_keep_others_out(est: EstHarness) -> None:
    contexts = est.listeners["est"].contexts
    est.servers["est"].rates = None
    limits = ListenerLimits(connected_max=4)
    listener = await listen(est.servers["est"], ("127.0.0.1", 0), contexts=contexts, limits=limits)
    est.listeners["est"], kept = listener, est.listeners["est"]
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    strangers = []
    try:
        for number in range(8):
            source = (f"127.0.0.{number % 2 + 2}", 0)
            _, writer = await asyncio.open_connection("127.0.0.1", listener.port, ssl=context, local_addr=source)
            strangers.append(writer)
        assert [(await est.send("GET", CACERTS)).status for _ in range(5)] == [200] * 5
        assert listener.stats.refused.get(Refusal.CONNECTED_CAP, 0) == 0
        assert listener.stats.refused[Refusal.GAVE_WAY] >= 4
    finally:
        est.listeners["est"] = kept
        for writer in strangers:
            writer.transport.abort()
        listener.close()
