"""A device that shows nothing, over EST: 202 with Retry-After (RFC 7030, 4.2.3) until an operator has decided."""

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from msgspec.structs import replace

from fleet.ca.keys import generate_key
from fleet.domain.access import Act
from fleet.domain.approval import ApprovalRequest, WaitingLimits
from fleet.domain.changes import AuditEntry, Change
from fleet.domain.device import Model
from fleet.domain.errors import Conflict
from fleet.domain.model_rules import AdmissionPath, AdmissionRules, ModelRules, ProfileRules
from fleet.domain.writes import DropRequests
from fleet.services import approvals, inventory
from fleet.wire.est import encode_body
from tests.servers.est_fixtures import Answer, EstHarness, basic, csr_for, open_est

LIMITS = WaitingLimits(requests_max=2)


@pytest.fixture
async def est(tmp_path: Path) -> AsyncIterator[EstHarness]:
    """Devices of model cam may wait; those of model pump may not."""
    async with open_est(tmp_path, waiting=LIMITS) as est:
        cam = await est.registry.model("cam")
        assert cam is not None
        admission = AdmissionRules((AdmissionPath.TOKEN, AdmissionPath.APPROVAL))
        opened = replace(cam, rules=replace(cam.rules, admission=admission))
        await inventory.set_model(est.registry, opened, act=Act("test", est.clock()))
        yield est


async def waiting(est: EstHarness) -> ApprovalRequest:
    (found,) = await est.registry.requests(now=est.clock())
    return found


async def test_accepted_and_issued_when_an_operator_says_so(est: EstHarness) -> None:
    csr = csr_for("new-1", generate_key())
    for _ in range(2):
        answer = await est.enroll(csr, label="cam")
        assert (answer.status, answer.code) == (202, "approval-pending")
        assert 24 <= int(answer.header("Retry-After") or "") <= 36
        assert (await waiting(est)).fingerprint in answer.text
    await approvals.approve(est.registry, (await waiting(est)).id, act=Act("operator", est.clock()))
    got = [await est.enroll(csr, label="cam") for _ in range(2)]
    assert [answer.status for answer in got] == [200, 200]
    assert got[0].certificates == got[1].certificates
    assert est.servers["est"].counters["202 approval-pending"] == 2


async def test_a_service_gets_a_servers_certificate_by_approval_alone(est: EstHarness) -> None:
    act = Act("test", est.clock())
    profile = ProfileRules(dns_name="{id}.example.com", service=True)
    rules = ModelRules(admission=AdmissionRules((AdmissionPath.APPROVAL,)), profile=profile)
    await inventory.add_model(est.registry, Model("partner", rules=rules), act=act)
    key = generate_key()
    csr = csr_for("shop", key)
    await est.device("shop", "partner")
    assert (await est.enroll(csr, basic(await est.token("shop")))).status == 403
    assert (await est.enroll(csr, label="partner")).status == 202
    await approvals.approve(est.registry, (await waiting(est)).id, act=Act("operator", est.clock()))
    (issued,) = (await est.enroll(csr, label="partner")).certificates
    usages = issued.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert set(usages) == {ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH}
    names = issued.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["shop.example.com"]
    # What has devices, admitted in another way, does not become services.
    await est.device("cam-1")
    cam = await est.registry.model("cam")
    assert cam is not None
    with pytest.raises(Conflict) as caught:
        await inventory.set_model(est.registry, replace(cam, rules=rules), act=act)
    assert caught.value.code == "model-has-devices"


async def test_denied(est: EstHarness) -> None:
    csr = csr_for("new-1")
    await est.enroll(csr, label="cam")
    await approvals.deny(est.registry, (await waiting(est)).id, act=Act("operator", est.clock()))
    answer = await est.enroll(csr, label="cam")
    assert (answer.status, answer.text) == (403, "An operator has denied this request. (request-denied)\n")


async def test_no_room(est: EstHarness) -> None:
    for n in range(2):
        assert (await est.enroll(csr_for(f"new-{n}"), label="cam")).status == 202
    answer = await est.enroll(csr_for("new-3"), label="cam")
    assert (answer.status, answer.code, answer.header("Retry-After")) == (429, "too-many-requests", "600")


@pytest.mark.parametrize("label", ["pump", "none-such", ""])
async def test_elsewhere_it_takes_something_to_show(est: EstHarness, label: str) -> None:
    answer = await est.enroll(csr_for("new-1"), label=label)
    assert (answer.status, answer.code) == (401, "no-credentials")
    assert answer.header("WWW-Authenticate") == 'Basic realm="estrealm"'
    assert await est.registry.requests(now=est.clock()) == []


async def test_a_registered_device_needs_no_label(est: EstHarness) -> None:
    await est.device("cam-1")
    assert (await est.enroll(csr_for("cam-1"))).status == 202
    await est.device("pump-1", "pump")
    assert (await est.enroll(csr_for("pump-1"))).code == "no-credentials"


async def test_a_wrong_token_is_not_put_to_an_operator(est: EstHarness) -> None:
    answer = await est.enroll(csr_for("new-1"), basic("abc.def"), label="cam")
    assert (answer.status, answer.code) == (401, "bad-token")
    assert await est.registry.requests(now=est.clock()) == []


@pytest.mark.parametrize(
    ("body", "status", "code"), [(b"", 400, "malformed"), (b"\x30\x03\x02\x01\x05", 400, "malformed")]
)
async def test_what_is_no_csr_waits_for_nobody(est: EstHarness, body: bytes, status: int, code: str) -> None:
    answer = await est.enroll(body, label="cam")
    assert (answer.status, answer.code) == (status, code)
    assert await est.registry.requests(now=est.clock()) == []


# Clients that send their token only once they are asked for it; BouncyCastle's sends no User-Agent, and reads no text


async def bare(est: EstHarness, csr: bytes, agent: str = "", **headers: str) -> Answer:
    body = encode_body(csr)
    lines = ["POST /.well-known/est/cam/simpleenroll HTTP/1.1", "Host: localhost", "Connection: close"]
    lines += ["Content-Type: application/pkcs10", f"Content-Length: {len(body)}"]
    lines += [f"User-Agent: {agent}"] if agent else []
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return Answer(await est.exchange("\r\n".join([*lines, "", ""]).encode() + body))


async def test_a_client_that_waits_for_a_challenge_is_asked_once(est: EstHarness) -> None:
    for agent in ("", "libest 3.2"):
        csr = csr_for(f"new-{len(agent)}", generate_key())
        answer = await bare(est, csr, agent)
        assert (answer.status, answer.header("X-Error-Code")) == (401, "no-credentials")
        assert answer.header("WWW-Authenticate") == 'Basic realm="estrealm"'
        assert (answer.header("Content-Length") == "0") is (agent == "")
        answer = await bare(est, csr, agent)
        assert (answer.status, answer.header("X-Error-Code")) == (202, "approval-pending")
        assert (answer.header("Content-Length") == "0") is (agent == "")
        assert int(answer.header("Retry-After") or "") > 0
        assert (await bare(est, csr, agent)).status == 202
        (found,) = await est.registry.requests(now=est.clock())
        await approvals.deny(est.registry, found.id, act=Act("test", est.clock()))
        assert (await bare(est, csr, agent)).header("X-Error-Code") == "request-denied"
        await est.registry.commit(
            Change(AuditEntry(est.clock(), "test", "x", "x", "ok"), (DropRequests(est.clock() + timedelta(days=99)),))
        )


async def test_asked_it_sends_its_token_and_waits_for_nobody(est: EstHarness) -> None:
    csr = csr_for("new-1", generate_key())
    assert (await bare(est, csr)).status == 401
    answer = await bare(est, csr, **basic(await est.token(model="cam")))
    assert answer.status == 200
    assert await est.registry.requests(now=est.clock()) == []
    wrong = await bare(est, csr_for("new-2"), **basic("0123456789ab.wrong"))
    assert (wrong.status, wrong.code, wrong.header("X-Error-Code")) == (401, "bad-token", "bad-token")


async def test_where_no_token_helps_nobody_is_asked(est: EstHarness) -> None:
    cam = await est.registry.model("cam")
    assert cam is not None
    only = replace(cam, rules=replace(cam.rules, admission=AdmissionRules((AdmissionPath.APPROVAL,))))
    await inventory.set_model(est.registry, only, act=Act("test", est.clock()))
    assert (await bare(est, csr_for("new-1"))).status == 202
