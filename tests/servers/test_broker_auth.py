"""The server that RabbitMQ and EMQX ask: each question as they put it, each refusal, and every way to ask badly."""

import asyncio
import base64
import json
import logging
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlencode

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from msgspec.structs import replace

from fleet.domain.access import Act
from fleet.domain.changes import Change
from fleet.domain.credential import CredentialKind, CredentialState
from fleet.domain.device import DeviceState, Model
from fleet.domain.errors import Unavailable
from fleet.domain.model_rules import ModelKind, ModelRules
from fleet.domain.mqtt_rules import ClientIdBinding, MqttRules
from fleet.domain.topic_policy import RESERVED, TopicPolicy
from fleet.domain.writes import AddCredential
from fleet.servers.broker_auth import emqx, server
from fleet.servers.broker_auth.question import BODY_SIZE_MAX, address_of
from fleet.servers.broker_auth.rabbitmq import topic_of
from fleet.servers.broker_auth.server import build_broker_auth_server
from fleet.services.revocation import revoke
from fleet.storage.sqlite.registry import SqliteRegistry
from tests.servers.delegated_auth_fixtures import AuthHouse, certificate, opened_as
from tests.servers.gateway_fixtures import credential, operator
from tests.waiting import PATIENCE_SECONDS

PAGE = Path(server.__file__).with_name("README.md")
SECRET = b"0123456789abcdef-secret"
OPEN = Model("open", publish=("devices/{id}/up/#", "a/+", "eq b", "c/${clientid}"), subscribe=("devices/{id}/down/#",))


def pem(der: bytes) -> bytes:
    return x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM)


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def code(self) -> str:
        return self.headers.get("X-Error-Code", "")

    @property
    def json(self) -> dict[str, object]:
        assert self.headers["Content-Type"] == "application/json"
        found: dict[str, object] = json.loads(self.body)
        return found


Ask = Callable[[bytes], Awaitable[Answer]]


def request(path: str, body: bytes, *headers: str, method: str = "POST") -> bytes:
    head = (f"{method} {path} HTTP/1.1", "Host: f", f"Content-Length: {len(body)}", *headers, "", "")
    return "\r\n".join(head).encode() + body


class House(AuthHouse):
    @asynccontextmanager
    async def connected(self) -> AsyncIterator[Ask]:
        reader, writer = await asyncio.open_unix_connection(self.path)

        async def ask(raw: bytes) -> Answer:
            writer.write(raw)
            async with asyncio.timeout(PATIENCE_SECONDS):
                lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                found = dict(line.split(": ", 1) for line in lines[1:-2])
                body = await reader.readexactly(int(found["Content-Length"]))
            return Answer(int(lines[0].split()[1]), found, body)

        try:
            yield ask
        finally:
            writer.close()

    async def raw(self, raw: bytes) -> Answer:
        async with self.connected() as ask:
            return await ask(raw)

    async def rabbitmq(self, question: str, **members: str) -> str:
        """The answer, and behind a denial its code."""
        named = {name.replace("__", "."): value for name, value in members.items()}
        answer = await self.raw(request(f"/rabbitmq/{question}", urlencode(named).encode()))
        assert answer.status == 200
        return f"{answer.body.decode()} {answer.code}".rstrip()

    async def emqx(self, question: str, **members: object) -> dict[str, object]:
        answer = await self.raw(request(f"/emqx/{question}", json.dumps(members).encode()))
        assert answer.status == 200
        return {**answer.json, **({"code": answer.code} if answer.code else {})}


def opened(folder: Path, *secrets: bytes) -> AbstractAsyncContextManager[House]:
    return opened_as(House, lambda context: build_broker_auth_server(context, lambda: secrets, "/"), folder)


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with opened(tmp_path) as house:
        yield house


CAM = {"username": "cam-1", "vhost": "/"}
VHOST = {**CAM, "ip": "192.0.2.7", "client_id": "cam-1"}
TOPIC = {
    **CAM,
    "resource": "topic",
    "name": "amq.topic",
    "variable_map__username": "cam-1",
    "variable_map__vhost": "/",
    "variable_map__client_id": "cam-1",
}
QUEUE = {**CAM, "resource": "queue", "permission": "configure"}


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),  # a dual-stack broker's
        ("::ffff:c000:207", "192.0.2.7"),
        ("2001:db8::7", "2001:db8::7"),
        ("nowhere", "-"),
    ],
)
def test_the_address_that_a_broker_gives(given: str, shown: str) -> None:
    assert address_of(given) == shown


async def test_rabbitmq_is_told_what_the_registry_says(house: House) -> None:
    await house.enroll("cam-1")
    await house.enroll("cam-2", state=DeviceState.SUSPENDED)
    exchange = {**CAM, "resource": "exchange", "name": "amq.topic", "permission": "write"}
    for question, members, says in (
        ("user", {"username": "cam-1"}, "allow"),
        ("user", {"username": "cam-1", "client_id": "cam-1", "vhost": "/"}, "allow"),  # later releases
        ("user", {"username": "cam-1", "client_id": "cam-2"}, "deny client-id-mismatch"),
        ("user", {"username": "cam-1", "password": ""}, "deny password-login"),
        ("user", {"username": "cam-2"}, "deny device-suspended"),
        ("user", {"username": "cam-9"}, "deny certificate-unknown"),
        ("user", {"username": ""}, "deny certificate-unknown"),
        ("user", {}, "deny malformed"),
        ("user", {"username": "cam-1", "sso": "1"}, "deny bad-request"),
        ("vhost", VHOST, "allow"),
        ("vhost", {**VHOST, "tags": ""}, "allow"),
        ("vhost", {**VHOST, "client_id": "cam-2"}, "deny client-id-mismatch"),
        ("vhost", {**VHOST, "vhost": "other"}, "deny resource-not-allowed"),
        ("vhost", {**CAM, "ip": "192.0.2.7"}, "deny bad-request"),  # a client of AMQP
        ("resource", exchange, "allow"),
        ("resource", {**exchange, "permission": "configure"}, "deny resource-not-allowed"),
        ("resource", {**exchange, "name": "amq.fanout"}, "deny resource-not-allowed"),
        ("resource", {**QUEUE, "name": "mqtt-subscription-cam-1qos1"}, "allow"),
        ("resource", {**QUEUE, "name": "mqtt-subscription-cam-2qos1"}, "deny resource-not-allowed"),
        ("resource", {**QUEUE, "name": "mqtt-subscription-cam-1qos1x"}, "deny resource-not-allowed"),
        ("resource", {**QUEUE, "name": "jobs"}, "deny resource-not-allowed"),
        ("resource", {**QUEUE, "name": "mqtt-subscription-cam-1qos1", "permission": "x"}, "deny resource-not-allowed"),
        ("topic", {**TOPIC, "permission": "write", "routing_key": "devices.cam-1.up.t"}, "allow"),
        ("topic", {**TOPIC, "permission": "write", "routing_key": "devices.cam-2.up.t"}, "deny topic-not-allowed"),
        ("topic", {**TOPIC, "permission": "write", "routing_key": "devices.cam-1.up.*"}, "deny topic-not-allowed"),
        ("topic", {**TOPIC, "permission": "read", "routing_key": "devices.cam-1.down.#"}, "allow"),
        ("topic", {**TOPIC, "permission": "read", "routing_key": "devices.*.down.#"}, "deny topic-not-allowed"),
        ("topic", {**TOPIC, "permission": "configure", "routing_key": "a"}, "deny resource-not-allowed"),
        ("topic", {**TOPIC, "name": "x", "permission": "read", "routing_key": "a"}, "deny resource-not-allowed"),
    ):
        assert await house.rabbitmq(question, **members) == says, (question, members)
    assert {entry.outcome for entry in await house.audited("mqtt.publish")} == {"refused", "resource-not-allowed"}
    assert {entry.outcome for entry in await house.audited("mqtt.subscribe")} == {"refused", "resource-not-allowed"}
    assert {entry.outcome for entry in await house.audited("mqtt.connect")} == {
        "client-id-mismatch",
        "device-suspended",
        "certificate-unknown",
        "password-login",
        "resource-not-allowed",
    }
    assert {entry.address for entry in await house.audited("mqtt.connect")} == {"-", "192.0.2.7"}


async def test_who_is_denied_is_in_the_audit_once_a_minute_and_in_the_log(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    await house.enroll("cam-1")
    caplog.set_level(logging.INFO, "fleet.servers.broker_auth")
    seen = {"clientid": "cam-1", "peerhost": "192.0.2.7"}
    for _ in range(3):
        assert await house.rabbitmq("user", username="cam-1", password="guess") == "deny password-login"
        assert await house.rabbitmq("user", username="_fleet", password="guess") == "deny password-login"
        assert await house.rabbitmq("vhost", **{**VHOST, "vhost": "other"}) == "deny resource-not-allowed"
        assert await house.rabbitmq("resource", **QUEUE, name="j" * 300) == "deny resource-not-allowed"
        assert (await house.emqx("authn", **seen, cert_pem=""))["code"] == "no-certificate"
        assert (await house.emqx("authn", **seen, cert_pem="!"))["code"] == "bad-client-certificate"
    rows = [*await house.audited("mqtt.connect"), *await house.audited("mqtt.publish")]
    assert {(row.actor, row.subject, row.outcome, row.address) for row in rows} == {
        ("nobody", "device cam-1", "password-login", "-"),
        ("nobody", "device cam-1", "resource-not-allowed", "192.0.2.7"),
        ("device cam-1", "device cam-1", "resource-not-allowed", "-"),
        ("nobody", "device cam-1", "no-certificate", "192.0.2.7"),
        ("nobody", "device cam-1", "bad-client-certificate", "192.0.2.7"),
    }
    assert len(rows) == 5
    [row] = await house.audited("mqtt.publish")
    assert row.detail["resource"] == f"queue {'j' * 250}"
    for code in ("password-login", "resource-not-allowed", "no-certificate", "bad-client-certificate"):
        assert f"code={code} status=200" in caplog.text, code
    assert "guess" not in caplog.text


async def test_unknown_users_fill_neither_audit_nor_log_and_others_are_answered(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    """Who gets so far has a certificate of a CA that the broker trusts, and no other proof is asked for."""
    await house.enroll("cam-1")
    caplog.set_level(logging.INFO, "fleet.servers.broker_auth")
    began = time.monotonic()
    async with house.connected() as ask:
        for number in range(300):
            members = {**VHOST, "username": f"x-{number}", "client_id": f"x-{number}", "ip": f"192.0.2.{number % 3}"}
            assert (await ask(request("/rabbitmq/vhost", urlencode(members).encode()))).code == "certificate-unknown"
    assert len(await house.audited("mqtt.connect")) == 3, "one of an address in a minute"
    house.server._lines.report()
    written = caplog.text.count("code=certificate-unknown")
    left_out = re.findall(r"log.suppressed of=http.broker-auth.certificate-unknown .*lines=(\d+)", caplog.text)
    assert written + sum(map(int, left_out)) == 300
    assert written <= 3 * 10 * (time.monotonic() - began + 2), "ten a second of an address"
    assert house.server.counters["200 certificate-unknown"] == 300
    assert await house.rabbitmq("vhost", **VHOST) == "allow"


def test_a_topic_of_rabbitmq_is_judged_as_the_one_whose_messages_it_reaches() -> None:
    assert topic_of("devices.a.b.up") == "devices/a/b/up"
    assert topic_of("devices.*.up.#") == "devices/+/up/#"
    policy = TopicPolicy(("devices/a.b/up/#",), ())
    assert not policy.may_publish(topic_of("devices.a.b.up.t")), "it would be the topic of a device `a` as well"


async def test_a_name_that_another_holder_has_too_is_denied(house: House) -> None:
    """RabbitMQ verifies the chain alone: a claim's certificate would be the device's."""
    await house.enroll("cam-1")
    claim = replace(credential("cam-1"), kind=CredentialKind.CLAIM, state=CredentialState.REVOKED)
    await house.registry.commit(Change(operator("add"), (AddCredential(claim),)))
    assert await house.rabbitmq("user", username="cam-1") == "deny ambiguous-name"


async def test_one_that_knocks_hides_no_other_in_the_audit(house: House) -> None:
    for name in ("cam-1", "cam-2"):
        await house.enroll(name)
        await revoke(house.registry, name, act=Act("operator", datetime.now(UTC)))
    for name in ("cam-1", "cam-1", "cam-2", "cam-2", "cam-1", "no-device", "nor-this"):
        await house.rabbitmq("user", username=name)
    rows = [row.entry for row in await house.registry.audit() if row.entry.action == "mqtt.connect"]
    assert [row.subject for row in rows] == ["device cam-1", "device cam-2", "device no-device"]


async def test_a_topic_with_nul_is_denied(house: House) -> None:
    await house.enroll("cam-1", OPEN)
    wish = {"clientid": "cam-1", "retain": False, "qos": 0, "cert_common_name": "cam-1"}
    for action, topic, result in (
        ("publish", "a/b", "allow"),
        ("publish", "a/\0b", "deny"),
        ("subscribe", "devices/cam-1/down/b", "allow"),
        ("subscribe", "devices/cam-1/down/\0", "deny"),
        ("subscribe", "$share/g\0/devices/cam-1/down/b", "deny"),
    ):
        answer = await house.emqx("authz", **wish, action=action, topic=topic)
        assert answer["result"] == result, (action, topic)


async def test_a_revocation_holds_for_the_next_question(house: House) -> None:
    one = await house.enroll("cam-1")
    encoded = base64.b64encode(one.der).decode()
    assert await house.rabbitmq("vhost", **VHOST) == "allow"
    assert (await house.emqx("authn", clientid="cam-1", cert_pem=encoded))["result"] == "allow"
    await revoke(house.registry, "cam-1", act=Act("operator", datetime.now(UTC)))
    assert await house.rabbitmq("vhost", **VHOST) == "deny device-revoked"
    refused = {"result": "deny", "code": "device-revoked"}
    assert await house.emqx("authn", clientid="cam-1", cert_pem=encoded) == refused
    wish = {"clientid": "cam-1", "topic": "devices/cam-1/up/t", "action": "publish", "retain": False, "qos": 0}
    assert await house.emqx("authz", **wish, cert_common_name="cam-1") == refused


async def test_emqx_is_told_until_when_and_what(house: House) -> None:
    one = await house.enroll("cam-1", OPEN)
    ends = int(one.not_after.timestamp())
    seen = {"peerhost": "192.0.2.7", "username": "", "cert_common_name": "cam-1", "cert_subject": "CN=cam-1"}
    chain = pem(one.der) + pem(certificate("issuer"))
    for shape in (
        *(base64.b64encode(each) for each in (one.der, pem(one.der), chain)),
        *(pem(one.der), chain, chain.replace(b"\n", b"\r\n"), pem(one.der) + b"\n" + pem(certificate("issuer"))),
    ):
        answer = await house.emqx("authn", clientid="cam-1", cert_pem=shape.decode(), **seen)
        assert answer == {"result": "allow", "is_superuser": False, "expire_at": ends}
    encoded = base64.b64encode(one.der).decode()
    qos = {"qos": [0, 1, 2]}
    assert (await house.emqx("authn-acl", clientid="cam-1", cert_pem=encoded))["acl"] == [
        {"permission": "deny", "action": "publish", "topic": "devices/+/fleet/#"},
        {"permission": "deny", "action": "publish", "topic": "fleet/presence/#"},
        {"permission": "allow", "action": "publish", "topic": "devices/cam-1/up/#", **qos, "retain": False},
        {"permission": "allow", "action": "publish", "topic": "a/+", **qos, "retain": False},
        {"permission": "allow", "action": "subscribe", "topic": "eq devices/cam-1/down/#", **qos},
        {"permission": "allow", "action": "subscribe", "topic": "eq devices/cam-1/fleet/#", **qos},
        {"permission": "deny", "action": "all", "topic": "#"},
    ]
    for members, code in (
        ({"clientid": "cam-2", "cert_pem": encoded}, "client-id-mismatch"),
        ({"clientid": "cam-1", "cert_pem": ""}, "no-certificate"),
        ({"clientid": "cam-1", "cert_pem": encoded[:-4]}, "bad-client-certificate"),
        ({"clientid": "cam-1", "cert_pem": (chain + b"x").decode()}, "bad-client-certificate"),
        ({"clientid": "cam-1", "cert_pem": (pem(one.der) + chain[:-9]).decode()}, "bad-client-certificate"),
        (
            {"clientid": "cam-1", "cert_pem": (pem(certificate("issuer")) + pem(one.der)).decode()},
            "certificate-unknown",
        ),
        ({"clientid": "cam-1", "cert_pem": base64.b64encode(certificate("x")).decode()}, "certificate-unknown"),
        ({"clientid": "cam-1"}, "bad-request"),
        ({"clientid": "cam-1", "cert_pem": encoded, "password": "x"}, "bad-request"),
        ({"clientid": None, "cert_pem": encoded}, "malformed"),
    ):
        assert await house.emqx("authn", **members) == {"result": "deny", "code": code}, members


async def test_what_emqx_asks_wrongly_is_named_in_the_log(house: House, caplog: pytest.LogCaptureFixture) -> None:
    one = await house.enroll("cam-1")
    caplog.set_level(logging.INFO, "fleet.servers.broker_auth")
    encoded = base64.b64encode(one.der).decode()
    for members, reason in (
        ({"clientid": "cam-1"}, "The question lacks cert_pem."),
        (
            {"clientid": "cam-1", "cert_pem": encoded, "password": "secret", "a b" * 99: "1"},
            f"The question has members that are not known: {('a b' * 99)[:40]}, password.",
        ),
        ({"clientid": "cam-1", "cert_pem": "!"}, "cert_pem: The certificate is not PEM, nor base64 of a certificate."),
    ):
        caplog.clear()
        assert (await house.emqx("authn", **members))["result"] == "deny"
        assert f'reason="{reason}"' in caplog.text
    assert "secret" not in caplog.text


async def test_emqx_asks_about_topics(house: House) -> None:
    one = await house.enroll("cam-1", OPEN)
    shown = {"cert_pem": base64.b64encode(one.der).decode()}
    up, down = "devices/cam-1/up/t", "devices/cam-1/down/#"
    for members, code in (
        ({**shown, "topic": up, "action": "publish", "retain": "false"}, ""),
        ({"cert_common_name": "cam-1", "topic": up, "action": "publish", "retain": False, "qos": 1}, ""),
        ({**shown, "topic": up, "action": "publish", "retain": False, "qos": 3}, "bad-request"),
        ({**shown, "topic": up, "action": "publish", "retain": True}, "topic-not-allowed"),
        ({**shown, "topic": "devices/cam-2/up/t", "action": "publish", "retain": ""}, "topic-not-allowed"),
        ({**shown, "topic": down, "action": "subscribe", "retain": ""}, ""),
        ({**shown, "topic": f"$share/g/{down}", "action": "subscribe", "retain": ""}, ""),
        ({**shown, "topic": "devices/+/down/#", "action": "subscribe", "retain": ""}, "topic-not-allowed"),
        ({**shown, "topic": up, "action": "all", "retain": ""}, "bad-request"),
        ({**shown, "topic": up, "action": "publish", "retain": "1"}, "bad-request"),
        ({**shown, "topic": up, "action": "publish"}, "bad-request"),
        ({"topic": up, "action": "publish", "retain": ""}, "certificate-unknown"),
        (
            {"cert_pem": "", "cert_common_name": "", "topic": up, "action": "publish", "retain": ""},
            "certificate-unknown",
        ),
    ):
        expected = {"result": "deny", "code": code} if code else {"result": "allow"}
        assert await house.emqx("authz", **{"clientid": "cam-1", "qos": "2", **members}) == expected, members


async def test_a_stranger_is_denied_in_the_brokers_words(tmp_path: Path) -> None:
    async with opened(tmp_path, SECRET) as house:
        await house.enroll("cam-1")
        body, basic = b"username=cam-1", base64.b64encode(b"rabbitmq:" + SECRET).decode()
        for headers, says in (
            ((), b"deny"),
            ((f"X-Proxy-Secret: {SECRET.decode()}",), b"allow"),
            ((f"Authorization: Basic {basic}",), b"allow"),
            ((f"Authorization: Basic {basic[:-4]}",), b"deny"),
            (("Authorization: Basic \xff",), b"deny"),
            ((f"Authorization: Bearer {basic}",), b"deny"),
            ((f"Authorization: Basic {basic}", f"Authorization: Basic {basic}"), b"deny"),
            ((f"Authorization: Basic {basic}", "X-Proxy-Secret: x"), b"deny"),
        ):
            answer = await house.raw(request("/rabbitmq/user", body, *headers))
            assert (answer.status, answer.body) == (200, says), headers
        answer = await house.raw(request("/emqx/authn", b"{}"))
        assert (answer.status, answer.json, answer.code) == (200, {"result": "deny"}, "bad-proxy-secret")
        assert answer.headers["Connection"] == "close"
        assert not await house.audited("mqtt.connect")


async def test_paths_methods_and_sizes(house: House) -> None:
    await house.enroll("cam-1")
    for path in ("/", "/user", "/rabbitmq", "/nginx", "//rabbitmq/user"):
        answer = await house.raw(request(path, b"username=cam-1"))
        assert answer.status == (404 if path != "/rabbitmq" else 200), path
        assert answer.code == "no-such-path"
        assert b"allow" not in answer.body
    for path in ("/rabbitmq/users", "/rabbitmq/user/", "/rabbitmq/user?username=cam-1", "/emqx/authn/acl", "/emqx/"):
        answer = await house.raw(request(path, b"username=cam-1"))
        assert (answer.status, answer.code) == (200, "no-such-path"), path
    answer = await house.raw(request("/rabbitmq/user", b"", method="GET"))
    assert (answer.status, answer.body, answer.code) == (200, b"deny", "bad-method")
    answer = await house.raw(request("/rabbitmq/user", b"username=" + b"c" * BODY_SIZE_MAX))
    assert (answer.status, answer.body, answer.code) == (200, b"deny", "too-large")
    answer = await house.raw(request("/rabbitmq/user", b"username=cam-1", "Content-Encoding: gzip"))
    assert (answer.status, answer.body, answer.code) == (200, b"deny", "content-encoding")


async def test_every_beginning_of_a_body_is_denied(house: House) -> None:
    one = await house.enroll("cam-1")
    wish = {"permission": "write", "routing_key": "devices.cam-1.up.t"}
    form = urlencode({name.replace("__", "."): value for name, value in {**wish, **TOPIC}.items()}).encode()
    whole = json.dumps({"clientid": "cam-1", "cert_pem": base64.b64encode(one.der).decode()}).encode()
    async with house.connected() as ask:
        for path, body in (("/rabbitmq/topic", form), ("/emqx/authn", whole)):
            assert b"allow" in (await ask(request(path, body))).body
            for size in range(len(body)):
                answer = await ask(request(path, body[:size]))
                assert answer.status == 200, size
                assert b"deny" in answer.body, size
                assert b"allow" not in answer.body, size


async def test_a_content_type_of_another_kind_is_denied(house: House) -> None:
    one = await house.enroll("cam-1")
    form, whole = b"username=cam-1", {"clientid": "cam-1", "cert_pem": base64.b64encode(one.der).decode()}
    for path, body, good in (
        ("/rabbitmq/user", form, "application/x-www-form-urlencoded"),
        ("/emqx/authn", json.dumps(whole).encode(), "application/json"),
    ):
        for shown in (good, f"{good}; charset=utf-8", good.upper()):
            assert b"allow" in (await house.raw(request(path, body, f"Content-Type: {shown}"))).body, shown
        for shown in ("text/plain", "multipart/form-data; boundary=x", f"{good}+x", "x"):
            answer = await house.raw(request(path, body, f"Content-Type: {shown}"))
            assert (answer.status, answer.code) == (200, "bad-content-type"), shown
            assert b"allow" not in answer.body


async def test_members_twice_long_or_odd_are_denied(house: House) -> None:
    one = await house.enroll("cam-1")
    encoded = base64.b64encode(one.der).decode()
    long, wide = "c" * 65_536, json.dumps({"clientid": "cam-1", "cert_pem": encoded})
    for path, body in (
        ("/rabbitmq/user", b"username=cam-1&username=cam-1"),
        ("/rabbitmq/user", b"username=cam-1&%75sername=cam-2"),
        ("/rabbitmq/user", b"username=" + long.encode()),
        ("/rabbitmq/user", b"username=cam-1&" + long.encode() + b"=1"),
        ("/rabbitmq/user", b"username=cam-1%00"),
        ("/rabbitmq/user", b"username=%ff"),
        ("/rabbitmq/topic", urlencode({**TOPIC, "permission": "write", "routing_key": long}).encode()),
        ("/emqx/authn", wide[:-1].encode() + b', "clientid": "cam-1"}'),
        ("/emqx/authn", wide[:-1].encode() + b', "client\\u0069d": "cam-2"}'),
        ("/emqx/authn", json.dumps({"clientid": long, "cert_pem": encoded}).encode()),
        ("/emqx/authn", json.dumps({"clientid": "cam-1", "cert_pem": long}).encode()),
        ("/emqx/authn", b'{"clientid": ' + b"[" * 65_536),
        ("/emqx/authn", json.dumps({"clientid": ["cam-1"], "cert_pem": encoded}).encode()),
    ):
        answer = await house.raw(request(path, body))
        assert (answer.status, bool(answer.code)) == (200, True), body[:60]
        assert b"allow" not in answer.body, body[:60]
    assert all(len(value) <= 300 for row in await house.registry.audit() for value in row.entry.detail.values())
    assert all(len(row.entry.subject) <= 80 for row in await house.registry.audit())


async def test_a_body_that_drips_has_one_deadline(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    object.__setattr__(server.LIMITS, "body_seconds_max", 0.1)
    try:
        reader, writer = await asyncio.open_unix_connection(house.path)
        whole = request("/emqx/authn", json.dumps({"clientid": "c" * 60_000}).encode())
        head = whole.index(b"\r\n\r\n") + 4
        writer.write(whole[:head])
        answered = asyncio.ensure_future(reader.readuntil(b"\r\n\r\n"))
        for octet in whole[head:-1]:
            writer.write(bytes((octet,)))
            if (await asyncio.wait((answered,), timeout=0.005))[0]:
                break
        assert b"X-Error-Code: too-slow" in answered.result()
        writer.close()
    finally:
        object.__setattr__(server.LIMITS, "body_seconds_max", 5.0)


async def test_an_application_may_what_its_policy_says(house: House) -> None:
    """It has a certificate and a model like a device's, of another kind, with the topics of all devices."""
    rules = ModelRules("", kind=ModelKind.APPLICATION)
    backend = Model("backend", publish=("devices/+/down/#",), subscribe=("devices/+/up/#",), rules=rules)
    one = await house.enroll("erp", backend)
    encoded = base64.b64encode(one.der).decode()
    assert (await house.emqx("authn", clientid="erp", cert_pem=encoded))["result"] == "allow"
    members = {**TOPIC, "username": "erp", "variable_map__username": "erp", "variable_map__client_id": "erp"}
    for permission, key, word in (
        ("write", "devices.cam-1.down.t", "allow"),
        ("write", "devices.cam-1.up.t", "deny"),
        ("write", "devices.cam-1.fleet.t", "deny"),
        ("read", "devices.*.up.#", "allow"),
        ("read", "devices.#", "deny"),
    ):
        says = await house.rabbitmq("topic", **members, permission=permission, routing_key=key)
        assert says.split()[0] == word, key
        action, topic = {"write": "publish", "read": "subscribe"}[permission], topic_of(key)
        wish = {"clientid": "erp", "cert_pem": encoded, "action": action, "topic": topic, "qos": 1, "retain": False}
        assert (await house.emqx("authz", **wish))["result"] == word, key
    await revoke(house.registry, "erp", act=Act("operator", datetime.now(UTC)))
    assert (await house.emqx("authn", clientid="erp", cert_pem=encoded))["code"] == "device-revoked"


async def test_a_body_that_does_not_come_is_denied(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    object.__setattr__(server.LIMITS, "body_seconds_max", 0.05)
    try:
        whole = request("/emqx/authn", b"{}")
        answer = await house.raw(whole[:-1])
    finally:
        object.__setattr__(server.LIMITS, "body_seconds_max", 5.0)
    assert (answer.status, answer.json, answer.code) == (200, {"result": "deny"}, "too-slow")


async def test_our_own_failures_are_denials(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    one = await house.enroll("cam-1")
    members = {"clientid": "cam-1", "cert_pem": base64.b64encode(one.der).decode()}
    house.feed = False
    assert await house.rabbitmq("user", username="cam-1") == "deny registry-unavailable"
    assert await house.emqx("authn", **members) == {"result": "deny", "code": "registry-unavailable"}
    house.feed = True

    async def unavailable(*words: object) -> None:
        raise Unavailable("registry-unavailable", "It is away.")

    async def broken(*words: object) -> None:
        raise RuntimeError

    for failing, code in ((unavailable, "registry-unavailable"), (broken, "internal")):
        monkeypatch.setattr(SqliteRegistry, "holder_facts", failing)
        assert await house.rabbitmq("user", username="cam-1") == f"deny {code}"
        assert await house.emqx("authn", **members) == {"result": "deny", "code": code}


def test_rules_that_emqx_would_read_as_others_are_left_out() -> None:
    rules = emqx.acl(TopicPolicy(("eq a", "b/${username}"), ("c/${clientid}", "eq d"), retain=True))
    reserved = [{"permission": "deny", "action": "publish", "topic": each} for each in RESERVED]
    assert rules == [*reserved, {"permission": "deny", "action": "all", "topic": "#"}]


def shown_on_page(question: str, **seen: str) -> dict[str, str]:
    """The body that EMQX sends to `question` by the page's configuration, for a client of which it has `seen` this."""
    [shown] = re.findall(r"^```hocon\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    _, _, block = str(shown).partition(f'/emqx/{question}"')
    [members] = re.findall(r"body \{(.*?)\n? *\}\n", block.partition("request_timeout")[0], re.DOTALL)
    return {name: seen.get(place, "") for name, place in re.findall(r'(\w+) = "\$\{(\w+)\}"', members)}


async def test_the_pages_configuration_of_emqx_asks_so_that_it_is_answered(house: House) -> None:
    one = await house.enroll("cam-1", OPEN)
    seen = {
        "clientid": "cam-1",
        "username": "cam-1",
        "peerhost": "192.0.2.7",
        "cert_common_name": "cam-1",
        "cert_pem": base64.b64encode(one.der).decode(),
    }
    assert (await house.emqx("authn", **shown_on_page("authn", **seen)))["result"] == "allow"
    assert (await house.emqx("authn", **shown_on_page("authn", **seen | {"clientid": "x"})))["result"] == "deny"
    publish = {**seen, "action": "publish", "topic": "devices/cam-1/up/t", "qos": "1", "retain": "false"}
    subscribe = {**seen, "action": "subscribe", "topic": "devices/cam-1/down/#", "qos": "1"}
    for wish, result in (
        (publish, "allow"),
        (publish | {"retain": "true"}, "deny"),
        (publish | {"topic": "x"}, "deny"),
        (subscribe, "allow"),
        (subscribe | {"topic": "#"}, "deny"),
    ):
        assert (await house.emqx("authz", **shown_on_page("authz", **wish)))["result"] == result, wish
    assert {entry.address for entry in await house.audited("mqtt.publish")} == {"192.0.2.7"}


@pytest.mark.parametrize("binding", ClientIdBinding)
async def test_a_client_id_that_could_be_another_devices_is_refused(house: House, binding: ClientIdBinding) -> None:
    """These brokers get it as it is: a client with the id of another device's session would take that over."""
    one = await house.enroll("cam-1", replace(OPEN, rules=ModelRules("", mqtt=MqttRules(client_id=binding))))
    encoded = base64.b64encode(one.der).decode()
    for client_id, is_own in (
        ("cam-1", True),
        ("cam-1/app", binding is not ClientIdBinding.EXACT),
        ("cam-2", False),
        ("cam-2/app", False),
        ("cam-1/~app", False),
        ("cam-1/a/b", False),
        ("", False),
    ):
        word = "allow" if is_own else "deny"
        assert (await house.emqx("authn", clientid=client_id, cert_pem=encoded))["result"] == word, client_id
        for question, members in (
            ("vhost", {**VHOST, "client_id": client_id}),
            ("resource", {**QUEUE, "name": f"mqtt-subscription-{client_id}qos0"}),
        ):
            assert (await house.rabbitmq(question, **members)).partition(" ")[0] == word, (question, client_id)
