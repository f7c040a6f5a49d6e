"""Sessions in an external broker are ended: requests and answers as RabbitMQ and EMQX document them."""

import asyncio
import base64
import json
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from msgspec.structs import replace

from fleet.broker_sessions.api import PAGE, SHAPES, BrokerApi, Sessions, credentials_in, opened
from fleet.config.addresses import parse_api_address
from fleet.config.settings import Settings
from fleet.domain.access import Act
from fleet.domain.changes import Change, Event, EventKind
from fleet.domain.credential import Credential, CredentialKind, CredentialState
from fleet.domain.device import DeviceState, Model
from fleet.domain.distrust import Distrust
from fleet.domain.errors import Invalid, Unavailable
from fleet.domain.model_rules import ModelRules
from fleet.domain.mqtt_rules import ClientIdBinding, MqttRules
from fleet.domain.registry_events import SessionKicked
from fleet.domain.writes import AddCredential, Insert, SetModel
from fleet.home.layout import Home
from fleet.runtime import background
from fleet.runtime.jobs import broker_sessions
from fleet.runtime.jobs.broker_sessions import broker_api, end_refused_sessions
from fleet.services.broker_access import is_admissible
from fleet.services.revocation import revoke, revoke_certificate, suspend
from fleet.storage.sqlite.registry import SqliteRegistry
from tests.interop.external_brokers import BOUND_SECONDS, spread
from tests.servers.gateway_fixtures import MODEL, credential, device, now, operator
from tests.tiers import Tier
from tests.waiting import until

PASSWORD = "between:them"
USER = f"_fleet:{PASSWORD}"
KINDS = ("rabbitmq", "emqx")


@dataclass
class Broker:
    """The API of a broker: its answers are `broken`, or those of its documentation."""

    kind: str
    names: list[str] = field(default_factory=list)
    broken: bytes | None = None
    asked: list[str] = field(default_factory=list)
    port: int = 0

    @property
    def ended(self) -> list[str]:
        return [line.rpartition("/")[2] for line in self.asked if line.startswith("DELETE")]

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                method, target, _ = lines[0].split()
                assert f"Authorization: Basic {base64.b64encode(USER.encode()).decode()}" in lines
                self.asked.append(f"{method} {target}")
                if self.broken is not None:
                    writer.write(self.broken)
                    break
                writer.write(self._good(method, target))
        except asyncio.IncompleteReadError:
            pass
        writer.close()

    def _good(self, method: str, target: str) -> bytes:
        if method == "DELETE":
            prefix = {"rabbitmq": "/api/connections/username/", "emqx": "/api/v5/clients/"}[self.kind]
            assert target.startswith(prefix)
            known = unquote(target.removeprefix(prefix)) in self.names
            return response(204 if known or self.kind == "rabbitmq" else 404, b"")
        return response(200, json.dumps(self.page(target)).encode())

    def page(self, target: str) -> dict[str, Any]:
        address = urlsplit(target)
        query = {name: values[0] for name, values in parse_qs(address.query).items()}
        number = int(query["page"]) - 1
        if self.kind == "rabbitmq":
            assert (address.path, query["columns"]) == ("/api/connections", "user")
            size = int(query["page_size"])
            rows = [{"user": name} for name in self.names[number * size :][:size]]
            pages = -(-len(self.names) // size)
            return {"items": rows, "page": number + 1, "page_count": pages, "total_count": len(self.names)}
        assert address.path == "/api/v5/clients"
        size = int(query["limit"])
        names = [name for name in self.names if query.get("like_clientid", "") in name]
        rows = [{"clientid": name, "node": "emqx@1"} for name in names[number * size :][:size]]
        return {"data": rows, "meta": {"page": number + 1, "limit": size, "count": len(self.names)}}


def response(status: int, body: bytes) -> bytes:
    size = b"" if status == 204 else b"Content-Length: %d\r\n" % len(body)
    return b"HTTP/1.1 %d X\r\nContent-Type: application/json\r\n%b\r\n%b" % (status, size, body)


@asynccontextmanager
async def answering(broker: Broker) -> AsyncIterator[Broker]:
    server = await asyncio.start_server(broker.answer, "127.0.0.1", broker.port)
    broker.port = server.sockets[0].getsockname()[1]
    try:
        yield broker
    finally:
        server.close()


def api_of(broker: Broker, folder: Path) -> BrokerApi:
    file = folder / "broker.password"
    file.touch(0o600)
    file.write_text(USER + "\n")
    return BrokerApi(SHAPES[broker.kind], f"http://127.0.0.1:{broker.port}", None, file)


@asynccontextmanager
async def asking(broker: Broker, folder: Path) -> AsyncIterator[Sessions]:
    async with answering(broker), opened(api_of(broker, folder)) as sessions:
        yield sessions


@pytest.mark.parametrize("kind", KINDS)
async def test_all_pages_are_read(tmp_path: Path, kind: str) -> None:
    names = [f"cam-{number}" for number in range(2 * PAGE)]
    for count in (0, 1, PAGE, PAGE + 1, 2 * PAGE):
        async with asking(Broker(kind, names[:count]), tmp_path) as sessions:
            found = [name async for page in sessions.names() for name in page]
        assert sorted(found) == sorted(names[:count])


@pytest.mark.parametrize("kind", KINDS)
async def test_an_end_is_asked_for_whatever_the_name(tmp_path: Path, kind: str) -> None:
    async with asking(broker := Broker(kind, ["cam-1"]), tmp_path) as sessions:
        await sessions.end("cam-1")
        await sessions.end("a:b/../c")  # has none: that is as good
        assert broker.ended == ["cam-1", "a%3Ab%2F..%2Fc"]


async def test_emqx_ends_what_a_device_has_beneath_its_id_too(tmp_path: Path) -> None:
    names = ["cam-1/app", "cam-1", "cam-1/bridge", "a-cam-1/app", "cam-10", "cam-10/app"]
    async with asking(broker := Broker("emqx", names), tmp_path) as sessions:
        await sessions.end("cam-1")
        assert sorted(broker.ended) == ["cam-1", "cam-1%2Fapp", "cam-1%2Fbridge"]


@pytest.mark.parametrize("kind", KINDS)
async def test_answers_that_are_none_are_failures(tmp_path: Path, kind: str) -> None:
    page = response(200, json.dumps(Broker(kind, ["cam-1"]).page(SHAPES[kind].page.format(1))).encode())
    head = page.index(b"\r\n\r\n") + 4
    cut = [page[:size] for size in range(len(page))]
    bad = [response(200, page[head:size]) for size in range(head, len(page))]
    bad += [response(status, b"{}") for status in (204, 301, 401, 500)]
    bad += [response(200, body) for body in (b"[]", b"1", b'{"items": 1, "data": 1}', b'{"items": [1], "data": [1]}')]
    async with asking(broker := Broker(kind), tmp_path) as sessions:
        for answer in (*cut, *bad):
            broker.broken = answer
            with pytest.raises(Unavailable) as caught:
                assert not [name async for each in sessions.names() for name in each]
            assert caught.value.code in ("cannot-reach", "broker-refused")
        broker.broken = response(401, b"")
        with pytest.raises(Unavailable, match="status 401"):
            await sessions.end("cam-1")


async def test_an_answer_that_is_too_large_or_late_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fleet.broker_sessions.api.ANSWER_SIZE_MAX", 10)
    async with asking(Broker("emqx", ["cam-1"]), tmp_path) as sessions:
        with pytest.raises(Unavailable, match="too large"):
            assert not [page async for page in sessions.names()]
    monkeypatch.setattr("fleet.broker_sessions.api.SECONDS_MAX", 0.05)

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    broker = Broker("emqx", port=server.sockets[0].getsockname()[1])
    async with server, opened(api_of(broker, tmp_path)) as sessions:
        with pytest.raises(Unavailable, match="cannot be administered"):
            await sessions.end("cam-1")


def test_the_password_file_is_read_as_one_line(tmp_path: Path) -> None:
    file = tmp_path / "p"
    with pytest.raises(Invalid, match="cannot be read"):
        credentials_in(file)
    file.touch(0o600)
    for text, good in (
        *(("a:b\n", "a:b"), ("a:b:c\r\nx", "a:b:c")),
        *((bad, "") for bad in ("a", ":b", "a:", "", "a:\0")),
    ):
        file.write_bytes(text.encode())
        if good:
            assert credentials_in(file) == good
        else:
            with pytest.raises(Invalid, match="does not hold USER:PASSWORD"):
                credentials_in(file)
    file.write_bytes(b"a:\xff")
    with pytest.raises(Invalid, match="not UTF-8") as refusal:
        credentials_in(file)
    assert refusal.value.advice == "See: broker_sessions.password_file in fleet.toml"
    file.chmod(0o640)
    with pytest.raises(Invalid, match="can be read by others"):
        credentials_in(file)


def test_a_mistake_in_the_settings_refuses_the_start(tmp_path: Path) -> None:
    api = parse_api_address("emqx+https://broker.example:18084")
    with pytest.raises(Invalid, match="cannot be read"):
        broker_api(Home(tmp_path), Settings(), api)
    with pytest.raises(Invalid, match=r"broker_sessions\.ca"):
        broker_api(Home(tmp_path), Settings(broker_sessions_ca="none.pem"), api)


@pytest.mark.parametrize(
    "text",
    ["rabbitmq", "http://127.0.0.1:1", "nats+https://b:1", "emqx+http://b:1", "emqx+https://b", "emqx+https://u@b:1"],
)
def test_what_is_no_api_of_a_broker(text: str) -> None:
    with pytest.raises(ValueError, match="is not"):
        parse_api_address(text)
    assert str(parse_api_address("rabbitmq+http://[::1]:15672/")) == "rabbitmq+http://[::1]:15672"


async def enroll(
    registry: SqliteRegistry, name: str, state: DeviceState = DeviceState.ACTIVE, *credentials: Credential
) -> None:
    added = [] if await registry.model(MODEL.name) else [Insert(MODEL)]
    shown = credentials or (credential(name),)
    await registry.commit(Change(operator("add"), (*added, Insert(device(name, state)), *map(AddCredential, shown))))


@asynccontextmanager
async def following(broker: Broker, registry: SqliteRegistry, folder: Path) -> AsyncIterator[None]:
    job = asyncio.create_task(end_refused_sessions(registry, api_of(broker, folder), now))
    try:
        yield
    finally:
        job.cancel()
        await asyncio.gather(job, return_exceptions=True)


@pytest.fixture
async def registry(tmp_path: Path) -> AsyncIterator[SqliteRegistry]:
    opened = await SqliteRegistry.open(tmp_path / "registry.db")
    yield opened
    await opened.close()


async def test_who_may_connect_now(registry: SqliteRegistry) -> None:
    """A device in service, by a certificate of its own that is usable now and not distrusted."""
    past, early = now() - timedelta(seconds=1), now() + timedelta(hours=1)
    younger = replace(credential("cam-6"), issued_at=now())
    for name, state, held in (
        ("cam-1", DeviceState.ACTIVE, [credential("cam-1", CredentialState.ISSUED)]),
        ("cam-2", DeviceState.SUSPENDED, [credential("cam-2")]),
        ("cam-3", DeviceState.REGISTERED, [credential("cam-3")]),
        ("cam-4", DeviceState.ACTIVE, [credential("cam-4", ends=past), replace(credential("cam-4"), not_before=early)]),
        ("cam-5", DeviceState.ACTIVE, [credential("cam-5", CredentialState.SUPERSEDED)]),
        ("cam-6", DeviceState.ACTIVE, [replace(credential("cam-6"), issued_at=past - timedelta(days=1)), younger]),
        ("cam-7", DeviceState.ACTIVE, [credential("cam-7", CredentialState.REVOKED)]),
        ("cam-8", DeviceState.ACTIVE, [replace(credential("cam-8"), kind=CredentialKind.STATION)]),
    ):
        await enroll(registry, name, state, *held)

    async def admissible() -> list[str]:
        return [name for name in (f"cam-{n}" for n in range(10)) if await is_admissible(registry, name, now())]

    assert await admissible() == ["cam-1", "cam-6"]
    rule = Distrust("a" * 12, now(), now(), issued_from=past - timedelta(minutes=1))
    await registry.commit(Change(operator("distrust"), (Insert(rule),)))
    assert await admissible() == ["cam-1", "cam-6"], "by its older certificate"
    every = Distrust("b" * 12, now(), now(), model=MODEL.name)
    await registry.commit(Change(operator("distrust"), (Insert(every),)))
    assert await admissible() == []


@pytest.mark.parametrize("kind", KINDS)
async def test_sessions_end_with_the_right_to_have_them(registry: SqliteRegistry, tmp_path: Path, kind: str) -> None:
    old = credential("cam-8", ends=now() - timedelta(seconds=1))
    await enroll(registry, "cam-7", DeviceState.SUSPENDED)
    await enroll(registry, "cam-8", DeviceState.ACTIVE, old)
    two = (credential("cam-2"), credential("cam-2"))
    await enroll(registry, "cam-2", DeviceState.ACTIVE, *two)
    for number in (1, 3, 4, 5):
        await enroll(registry, f"cam-{number}")
    act = Act("operator", now())
    broker = Broker(kind, ["cam-1", "cam-2", "cam-3", "cam-4", "cam-5", "cam-7", "cam-8", "_fleet", "stranger"])
    async with answering(broker), following(broker, registry, tmp_path):
        await until(lambda: len(broker.ended) == 2)
        assert sorted(broker.ended) == ["cam-7", "cam-8"], "what must not be is found at the start"
        await suspend(registry, "cam-1", act=act)
        await until(lambda: "cam-1" in broker.ended)
        await revoke_certificate(registry, two[0], act=act)
        await until(lambda: "cam-2" in broker.ended)
        await revoke(registry, "cam-3", act=act)
        await until(lambda: "cam-3" in broker.ended)
        await registry.commit(Change(operator("kick"), (), (SessionKicked("cam-4").event(),)))
        await until(lambda: "cam-4" in broker.ended)
        assert not {"cam-5", "_fleet", "stranger"} & set(broker.ended)


@pytest.mark.parametrize("kind", KINDS)
async def test_how_soon_a_revocation_ends_a_session(
    registry: SqliteRegistry, tmp_path: Path, kind: str, tier: Tier
) -> None:
    """Until the broker is asked to."""
    names = [f"cam-{number}" for number in range(tier.times(5, all=30))]
    took = []
    async with answering(broker := Broker(kind, list(names))), following(broker, registry, tmp_path):
        await until(lambda: broker.asked)
        for name in names:
            await enroll(registry, name)
            began = time.monotonic()
            await revoke(registry, name, act=Act("operator", now()))
            await until(lambda: name in broker.ended)  # noqa: B023
            took.append(time.monotonic() - began)
    print(f"\n{kind}'s API is asked: {spread(took)}")
    assert median(took) < BOUND_SECONDS


async def set_model(registry: SqliteRegistry, **changes: Any) -> None:
    event, old = Event(EventKind.MODEL_CHANGED, MODEL.name), await registry.model(MODEL.name)
    assert old is not None
    model = replace(MODEL, **changes, revision=old.revision)
    await registry.commit(Change(operator("model.set"), (SetModel(model),), (event,)))


@pytest.mark.parametrize("kind", KINDS)
async def test_sessions_end_when_their_model_loses_a_right(registry: SqliteRegistry, tmp_path: Path, kind: str) -> None:
    await enroll(registry, "cam-1")
    await registry.commit(Change(operator("add"), (Insert(Model("other")),)))
    other = replace(device("x-1"), model="other")
    await registry.commit(Change(operator("add"), (Insert(other), AddCredential(credential("x-1")))))
    broker = Broker(kind, ["cam-1", "x-1", "_fleet", "stranger"])
    async with answering(broker), following(broker, registry, tmp_path):
        await until(lambda: broker.asked)
        await set_model(registry, publish=(*MODEL.publish, "more/#"))
        await set_model(registry, subscribe=MODEL.subscribe[:1], publish=(*MODEL.publish, "more/#"))
        await until(lambda: "cam-1" in broker.ended)
        broker.asked.clear()
        await set_model(registry, subscribe=MODEL.subscribe[:1])
        await until(lambda: "cam-1" in broker.ended)
        assert broker.ended == ["cam-1"], "of the model's devices alone, once"


async def test_a_model_that_is_new_is_known_before_its_devices_have_sessions(
    registry: SqliteRegistry, tmp_path: Path
) -> None:
    async with answering(broker := Broker("rabbitmq")), following(broker, registry, tmp_path):
        await until(lambda: broker.asked)
        await enroll(registry, "cam-1")
        issued = Event(EventKind.CREDENTIAL_ISSUED, "cam-1", "ab" * 32)
        await registry.commit(Change(operator("issue"), (), (issued, SessionKicked("cam-9").event())))
        await until(lambda: broker.ended)
        broker.names.append("cam-1")
        await set_model(registry, publish=(*MODEL.publish, "more/#"))
        await set_model(registry, retain=False)
        await until(lambda: "cam-1" in broker.ended)


async def test_a_session_that_is_not_listed_yet_is_found_later(
    registry: SqliteRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RabbitMQ's list is some seconds old. One that was ended is left alone: it may be there again."""
    monkeypatch.setattr(broker_sessions, "AGAIN_SECONDS", 0.3)
    for name in ("cam-1", "cam-2"):
        await enroll(registry, name)
    await enroll(registry, "cam-7", DeviceState.SUSPENDED)
    async with answering(broker := Broker("rabbitmq", ["cam-1"])), following(broker, registry, tmp_path):
        await until(lambda: broker.asked)
        broker.names.append("cam-7")
        await set_model(registry, retain=False)
        await until(lambda: "cam-1" in broker.ended)
        broker.names.append("cam-2")
        await until(lambda: {"cam-2", "cam-7"} <= set(broker.ended))
        assert broker.ended.count("cam-1") == 1


def test_what_a_change_of_a_model_takes_away() -> None:
    cam = device("cam-1")

    def mqtt(**rules: Any) -> ModelRules:
        return ModelRules("", mqtt=MqttRules(**rules))

    wide = replace(MODEL, rules=mqtt(client_id=ClientIdBinding.PREFIX))
    for old, new, is_less in (
        (MODEL, MODEL, False),
        (MODEL, replace(MODEL, publish=("#",), subscribe=("#",)), False),
        (MODEL, replace(MODEL, publish=("devices/cam-1/up/#", "all/+")), False),
        (MODEL, replace(MODEL, publish=MODEL.publish[:1]), True),
        (MODEL, replace(MODEL, subscribe=("devices/{id}/down/+",)), True),
        (MODEL, replace(MODEL, retain=False), True),
        (replace(MODEL, retain=False), MODEL, False),
        (MODEL, replace(MODEL, rules=mqtt(qos_max=1)), True),
        (MODEL, replace(MODEL, rules=mqtt(shared_subscriptions=False)), True),
        (MODEL, replace(MODEL, rules=mqtt(messages_per_second=1)), False),
        (MODEL, wide, False),
        (wide, MODEL, True),
    ):
        assert broker_sessions.has_lost(cam, old, new) is is_less, (old, new)


async def test_new_tags_end_sessions_where_topics_depend_on_them(registry: SqliteRegistry, tmp_path: Path) -> None:
    await enroll(registry, "cam-1")
    tagged = Event(EventKind.DEVICE_TAGGED, "cam-1")
    async with answering(broker := Broker("rabbitmq", ["cam-1"])), following(broker, registry, tmp_path):
        await until(lambda: broker.asked)
        await registry.commit(Change(operator("tag"), (), (tagged,)))
        await set_model(registry, publish=(*MODEL.publish, "sites/{tag:site}/#"))
        await registry.commit(Change(operator("tag"), (), (tagged,)))
        await until(lambda: broker.ended)
        assert broker.ended == ["cam-1"]


async def test_what_a_model_lost_while_the_broker_was_away_ends_sessions(
    registry: SqliteRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(background, "RETRY_SECONDS", 0.05)
    caplog.set_level(logging.INFO, "fleet.broker_sessions")
    await enroll(registry, "cam-1")
    async with answering(broker := Broker("rabbitmq", ["cam-1"])), following(broker, registry, tmp_path):
        await until(lambda: broker.asked)
        broker.broken = response(500, b"")
        await set_model(registry, retain=False)
        await until(lambda: "outcome=failed code=broker-refused" in caplog.text)
        broker.broken = None
        await until(lambda: "outcome=narrowed device=cam-1" in caplog.text)


async def test_what_was_admitted_at_the_moment_of_the_change_is_ended_too(
    registry: SqliteRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broker_sessions, "AGAIN_SECONDS", 0.05)
    await enroll(registry, "cam-1")
    await enroll(registry, "cam-2")
    async with answering(broker := Broker("rabbitmq")), following(broker, registry, tmp_path):
        await until(lambda: broker.asked)
        await registry.commit(Change(operator("kick"), (), (SessionKicked("cam-2").event(),)))
        await revoke(registry, "cam-1", act=Act("operator", now()))
        await until(lambda: broker.ended.count("cam-1") == 2)
        assert broker.ended.count("cam-2") == 1, "it may be there again"


async def test_a_broker_that_was_away_is_compared_as_a_whole(
    registry: SqliteRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(background, "RETRY_SECONDS", 0.05)
    await enroll(registry, "cam-1")
    async with answering(broker := Broker("rabbitmq", ["cam-1"])):
        pass
    async with following(broker, registry, tmp_path):
        await until(lambda: "outcome=failed code=cannot-reach" in caplog.text)
        await revoke(registry, "cam-1", act=Act("operator", now()))
        async with answering(broker):
            await until(lambda: "cam-1" in broker.ended)
            assert PASSWORD not in caplog.text


async def test_sessions_are_swept_now_and_then(
    registry: SqliteRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A certificate ends without an event."""
    monkeypatch.setattr(broker_sessions, "SWEEP_SECONDS", 0.05)
    monkeypatch.setattr(broker_sessions, "AGAIN_SECONDS", 0.05)
    await enroll(registry, "cam-1", DeviceState.ACTIVE, credential("cam-1", ends=now() + timedelta(seconds=0.3)))
    async with answering(broker := Broker("emqx", ["cam-1"])), following(broker, registry, tmp_path):
        await until(lambda: broker.ended)
        assert sum(line.startswith("GET") for line in broker.asked) > 1
