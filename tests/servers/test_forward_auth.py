"""The forward-auth server on a Unix socket: every shape, every refusal, headers that a client smuggles."""

import asyncio
import base64
import dataclasses
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from msgspec.structs import replace

from fleet.domain.access import Act
from fleet.domain.changes import Change, Event, EventKind
from fleet.domain.credential import CredentialState
from fleet.domain.device import DeviceState, Model
from fleet.domain.distrust import Distrust
from fleet.domain.errors import Unavailable
from fleet.domain.model_rules import HttpRules, ModelRules
from fleet.domain.ports import HolderFacts
from fleet.domain.writes import AddCredential, SetModel
from fleet.runtime import local_listener
from fleet.servers.forward_auth.server import build_forward_auth_server
from fleet.services import distrust
from fleet.services.revocation import revoke
from fleet.wire.forwarded_certificate import VALUE_SIZE_MAX
from tests.servers.delegated_auth_fixtures import AuthHouse, certificate, held, opened_as
from tests.servers.gateway_fixtures import MODEL, operator
from tests.waiting import PATIENCE_SECONDS

SECRET = b"0123456789abcdef-secret"
RULES = ModelRules(tenant="", http=HttpRules(("GET,HEAD /v1/{id}/**",)))
STRICT = Model("strict", rules=RULES)


def escaped(der: bytes) -> str:
    return quote(x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM), safe="")


def base64_of(der: bytes) -> str:
    return base64.b64encode(der).decode()


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]

    @property
    def code(self) -> str:
        return self.headers.get("X-Error-Code", "")

    @property
    def identity(self) -> tuple[str | None, ...]:
        return tuple(self.headers.get(f"X-Device-{name}") for name in ("Id", "Model", "Tenant", "Serial"))


Ask = Callable[..., Awaitable[Answer]]


class House(AuthHouse):
    async def ask(self, target: str, *headers: str, method: str = "GET") -> Answer:
        async with self.connected() as ask:
            return await ask(target, *headers, method=method)

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[Ask]:
        reader, writer = await asyncio.open_unix_connection(self.path)

        async def ask(target: str, *headers: str, method: str = "GET") -> Answer:
            writer.write("\r\n".join((f"{method} {target} HTTP/1.1", "Host: f", *headers, "", "")).encode("latin-1"))
            async with asyncio.timeout(PATIENCE_SECONDS):
                lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                found = dict(line.split(": ", 1) for line in lines[1:-2])
                await reader.readexactly(0 if method == "HEAD" else int(found.get("Content-Length", 0)))
            return Answer(int(lines[0].split()[1]), found)

        try:
            yield ask
        finally:
            writer.close()


def opened(folder: Path, *secrets: bytes) -> AbstractAsyncContextManager[House]:
    return opened_as(House, lambda context: build_forward_auth_server(context, lambda: secrets), folder)


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with opened(tmp_path) as house:
        yield house


def nginx(der: bytes, method: str = "GET", target: str = "/") -> tuple[str, ...]:
    return (f"X-Client-Cert: {escaped(der)}", f"X-Original-Method: {method}", f"X-Original-URI: {target}")


async def test_every_shape_is_answered_with_the_identity(house: House) -> None:
    one = await house.enroll("cam-1")
    b64, pem = base64_of(one.der), escaped(one.der)
    xfcc = f'X-Forwarded-Client-Cert: By=;Hash={one.fingerprint.hex()};Cert="{pem}"'
    for target, *headers in (
        ("/nginx", *nginx(one.der)),
        ("/haproxy?x", f"X-Client-Cert: {b64}", "X-Original-Method: GET", "X-Original-URI: /"),
        ("/traefik", f"X-Forwarded-Tls-Client-Cert: {b64},{b64}", "X-Forwarded-Method: GET", "X-Forwarded-Uri: /"),
        ("/envoy/v1/things?x", xfcc),
        ("/nginx", f"x-client-cert: {pem}"),  # without rules nobody needs to know what is asked for
    ):
        answer = await house.ask(target, *headers)
        assert (answer.status, answer.identity) == (200, ("cam-1", "cam2", "", "SN cam-1")), target
    assert (await house.ask("/envoy/v1/things", xfcc, method="POST")).status == 200
    assert house.server.counters == {"200": 6}


async def test_who_may_not_go_on(house: House) -> None:
    unknown = certificate("x")
    suspended = await house.enroll("cam-2", state=DeviceState.SUSPENDED)
    foreign = await house.enroll("cam-3")
    house.ours.remove(foreign.der)
    for headers, status, code in (
        ((), 401, "no-certificate"),
        (("X-Client-Cert: ",), 401, "no-certificate"),
        (nginx(unknown), 401, "certificate-unknown"),
        (nginx(suspended.der), 403, "device-suspended"),
        (nginx(foreign.der), 403, "other-tenant"),
        ((f"X-Client-Cert: {escaped(foreign.der)[:-4]}",), 403, "bad-client-certificate"),
        (("X-Client-Cert: %",), 403, "bad-client-certificate"),
        ((f"X-Client-Cert: {'A' * (VALUE_SIZE_MAX - 20)}",), 403, "bad-client-certificate"),
    ):
        answer = await house.ask("/nginx", *headers)
        assert (answer.status, answer.code) == (status, code)
        assert answer.identity == (None,) * 4
    refusals = {entry.outcome for entry in await house.audited("http.request")}
    assert refusals == {
        "no-certificate",
        "certificate-unknown",
        "device-suspended",
        "other-tenant",
        "bad-client-certificate",
    }


async def test_the_log_names_the_certificate_that_was_refused(house: House, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "fleet.servers.forward_auth")
    await house.ask("/nginx", *nginx(certificate("x")))
    assert "code=certificate-unknown" in caplog.text
    assert " serial=1 " in caplog.text


async def test_a_revocation_holds_for_the_next_request_of_a_kept_connection(house: House) -> None:
    one = await house.enroll("cam-1")
    async with house.connected() as ask:
        assert (await ask("/nginx", *nginx(one.der))).status == 200
        await revoke(house.registry, "cam-1", act=Act("operator", datetime.now(UTC)))
        answer = await ask("/nginx", *nginx(one.der))
        assert (answer.status, answer.code) == (403, "device-revoked")


async def test_a_distrust_holds_for_the_next_request_and_so_does_a_revocation_that_the_registry_forgot(
    house: House,
) -> None:
    one, act = await house.enroll("cam-1"), Act("operator", datetime.now(UTC))
    async with house.connected() as ask:
        rule = Distrust("0" * 12, act.now, act.now, MODEL.name)
        await distrust.begin(house.registry, rule, act=act)
        answer = await ask("/nginx", *nginx(one.der))
        assert (answer.status, answer.code) == (403, "certificate-distrusted")
        await distrust.undo(house.registry, rule, act=act)
        assert (await ask("/nginx", *nginx(one.der))).status == 200
        house.registry.revoked.on_event(Event(EventKind.DEVICE_STATE, "cam-1", "revoked"))
        answer = await ask("/nginx", *nginx(one.der))
        assert (answer.status, answer.code) == (403, "device-revoked")


async def test_the_first_use_of_a_certificate_supersedes_the_one_before(house: House) -> None:
    one = await house.enroll("cam-1")
    new = held("cam-1", CredentialState.ISSUED)
    await house.registry.commit(Change(operator("renew"), (AddCredential(new),)))
    house.ours.add(new.der)
    assert (await house.ask("/nginx", *nginx(one.der))).status == 200
    assert (await house.ask("/nginx", *nginx(new.der))).status == 200
    assert (await house.ask("/nginx", *nginx(one.der))).code == "certificate-superseded"


async def test_rules_of_the_model(house: House) -> None:
    one = await house.enroll("cam-1", STRICT)
    for method, target, code in (
        ("GET", "/v1/cam-1/a?b", ""),
        ("HEAD", "/v1/cam-1", ""),
        ("POST", "/v1/cam-1/a", "http-not-allowed"),
        ("GET", "/v1/cam-2/a", "http-not-allowed"),
        ("GET", "/v1/cam-1/../cam-2", "bad-target"),
        ("GET", "/v1/cam-1/%2e%2e/cam-2", "bad-target"),
        ("GET", "/v1/cam-1/a%00", "bad-target"),
        ("GET", "/v1/cam-1/\xff", "bad-target"),
        ("get", "/v1/cam-1/a", "bad-target"),
    ):
        answer = await house.ask("/nginx", *nginx(one.der, method, target))
        assert answer.code == code, target
    assert (await house.ask("/nginx", f"X-Client-Cert: {escaped(one.der)}")).code == "bad-target"
    xfcc = f'X-Forwarded-Client-Cert: Cert="{escaped(one.der)}"'
    assert (await house.ask("/envoy/v1/cam-1/a", xfcc)).status == 200
    assert (await house.ask("/envoy/v1/cam-1/a", xfcc, method="DELETE")).code == "http-not-allowed"
    assert (await house.ask("/envoy//v1/cam-1/a", xfcc)).code == "bad-target"
    first = next(each for each in await house.audited("http.request") if each.outcome == "http-not-allowed")
    assert first.actor == first.subject == "device cam-1"
    assert first.detail == {"serial": one.serial, "method": "POST", "target": "/v1/cam-1/a"}
    open_to_all = replace(STRICT, rules=ModelRules())
    await house.registry.commit(Change(operator("model"), (SetModel(open_to_all),)))
    assert (await house.ask("/nginx", *nginx(one.der, "POST", "/x"))).status == 200


async def test_headers_that_a_client_smuggles_are_refused_or_unread(house: House) -> None:
    one, two = await house.enroll("cam-1", STRICT), await house.enroll("cam-2", STRICT)
    mine = nginx(one.der, "GET", "/v1/cam-1/a")
    for smuggled in (
        f"X-Client-Cert: {escaped(two.der)}",
        f"x-client-cert: {escaped(one.der)}",
        "X-Original-URI: /v1/cam-1/b",
        "X-ORIGINAL-METHOD: GET",
    ):
        for headers in ((*mine, smuggled), (smuggled, *mine)):
            assert (await house.ask("/nginx", *headers)).code == "repeated-header"
    others = (
        "X-Device-Id: cam-2",
        "X-Device-Model: forged",
        f"X-Forwarded-Client-Cert: Cert={escaped(two.der)}",
        f"X-Forwarded-Tls-Client-Cert: {base64_of(two.der)}",
        "X-Forwarded-Uri: /v1/cam-2",
        "X-Proxy-Secret: x",
    )
    answer = await house.ask("/nginx", *mine, *others)
    assert (answer.status, answer.identity[:2]) == (200, ("cam-1", "strict"))


async def test_requests_that_are_none(house: House) -> None:
    for target, method, status in (
        ("/", "GET", 404),
        ("/nginx/", "GET", 404),
        ("/envoy", "GET", 404),
        ("/nginx", "POST", 405),
        ("/traefik", "HEAD", 405),
    ):
        assert (await house.ask(target, method=method)).status == status
    assert (await house.ask("/nginx", f"X-Client-Cert: {'A' * 65_536}")).status == 431
    assert (await house.ask("/nginx", *(f"X-{number}: y" for number in range(300)))).status == 431


async def test_with_a_secret_every_request_must_carry_it(tmp_path: Path) -> None:
    async with opened(tmp_path, SECRET, b"the-second-secret") as house:
        one = await house.enroll("cam-1")
        asked = nginx(one.der)
        secret = f"X-Proxy-Secret: {SECRET.decode()}"
        for headers in (
            (),
            ("X-Proxy-Secret: ",),
            (f"{secret}x",),
            (secret[:-1],),
            ("X-Proxy-Secret: \xff\xfe",),
            (secret, secret),
        ):
            answer = await house.ask("/nginx", *headers, *asked)
            assert (answer.status, answer.code) == (403, "bad-proxy-secret")
        assert (await house.ask("/nginx", secret, *asked)).status == 200
        assert (await house.ask("/nginx", "X-Proxy-Secret: the-second-secret", *asked)).status == 200
        assert (await house.ask("/elsewhere")).code == "bad-proxy-secret"


async def test_without_the_secret_a_connection_ends_at_once_whatever_of_a_body_is_to_come(tmp_path: Path) -> None:
    async with opened(tmp_path, SECRET) as house:
        house.server.limits = dataclasses.replace(house.server.limits, linger_seconds_max=10 * PATIENCE_SECONDS)
        reader, writer = await asyncio.open_unix_connection(house.path)
        writer.write(b"POST /nginx HTTP/1.1\r\nHost: f\r\nContent-Length: 100\r\n\r\na")
        async with asyncio.timeout(PATIENCE_SECONDS):
            answered = await reader.read()
        assert b"X-Error-Code: bad-proxy-secret" in answered
        assert b"Connection: close" in answered
        writer.close()


async def test_connections_without_the_secret_give_way_to_those_of_proxies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_listener, "LOCAL_CONNECTIONS_MAX", 4)
    async with opened(tmp_path, SECRET) as house, AsyncExitStack() as opening:
        asked = (f"X-Proxy-Secret: {SECRET.decode()}", *nginx((await house.enroll("cam-1")).der))
        proxies = [await opening.enter_async_context(house.connected()) for _ in range(2)]
        for proxy in proxies:
            assert (await proxy("/nginx", *asked)).status == 200
        for _ in range(3):
            # All at once, as they wait in the listener's queue after a moment in which the server was busy.
            strangers = [stranger(house) for _ in range(40)]
            for proxy in proxies:
                assert (await proxy("/nginx", *asked)).status == 200
            assert (await house.ask("/nginx", *asked)).status == 200
            assert len(house.server.connections) <= 5  # one may be on its way out
            for each in strangers:
                each.close()


def stranger(house: House) -> socket.socket:
    """A connection with the beginning of a request."""
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(str(house.path))
    connection.send(b"POST /nginx HTTP/1.1\r\nHost: f\r\n")
    return connection


async def test_what_cannot_be_judged_is_denied(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    one = await house.enroll("cam-1")
    house.feed = False
    answer = await house.ask("/nginx", *nginx(one.der))
    assert (answer.status, answer.code) == (503, "registry-unavailable")
    house.feed = True

    async def fails(fingerprint: bytes) -> None:
        raise Unavailable("registry-unavailable", "The registry cannot be reached.")

    monkeypatch.setattr(house.registry, "holder_facts", fails)
    assert (await house.ask("/nginx", *nginx(one.der))).status == 503


async def test_a_full_listener_ends_an_idle_connection_and_no_busy_one(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_listener, "LOCAL_CONNECTIONS_MAX", 2)
    one = await house.enroll("cam-1")
    asked = nginx(one.der)
    async with house.connected() as first, house.connected() as second:
        assert (await first("/nginx", *asked)).status == (await second("/nginx", *asked)).status == 200
        assert (await house.ask("/nginx", *asked)).status == 200  # in place of the first
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await first("/nginx", *asked)
        assert (await second("/nginx", *asked)).status == 200
    may_answer, waits = asyncio.Event(), asyncio.Semaphore(0)
    found = house.registry.holder_facts

    async def slow(fingerprint: bytes) -> HolderFacts | None:
        waits.release()
        await may_answer.wait()
        return await found(fingerprint)

    monkeypatch.setattr(house.registry, "holder_facts", slow)
    busy = [asyncio.create_task(house.ask("/nginx", *asked)) for _ in range(2)]
    for _ in busy:
        await waits.acquire()
    with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
        await house.ask("/nginx", *asked)
    may_answer.set()
    assert [answer.status for answer in await asyncio.gather(*busy)] == [200, 200]
    assert house.server.counters[local_listener.NO_ROOM] == 1


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("X-Real-IP: 192.0.2.7", "192.0.2.7"),
        ("X-Real-IP: 198.51.100.1, 192.0.2.7", "192.0.2.7"),
        ("X-Real-IP: 2001:db8::1", "2001:db8::1"),
        ("X-Real-IP: unix:", "-"),
        ("X-Other: 192.0.2.7", "-"),
    ],
)
async def test_the_audit_has_the_address_that_the_proxy_saw(house: House, address: str, shown: str) -> None:
    await house.ask("/nginx", address)
    assert [entry.address for entry in await house.audited("http.request")] == [shown]
