"""Asking a webhook: what it is sent, and everything that is not a yes."""

import asyncio
import base64
import hashlib
import json
import os
import socket
import ssl
import threading
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import pytest
from http_message_signatures import HTTPMessageVerifier, HTTPSignatureKeyResolver, InvalidSignature, VerifyResult
from http_message_signatures.algorithms import ECDSA_P256_SHA256

from fleet.ca.keys import generate_key
from fleet.config.small_files import CERTIFICATES_SIZE_MAX
from fleet.domain.authorization import Question, Verdict
from fleet.domain.errors import Invalid, Unreachable
from fleet.webhook.caller import CallLimits, Webhooks, client_context
from fleet.webhook.messages import ANSWER_SIZE_MAX, decode_answer
from fleet.webhook.resolver import LOOKUPS_MAX, Resolver, must_be_remote
from fleet.webhook.signing import COVERED, TAG, Signer
from tests.waiting import PATIENCE_SECONDS
from tests.webhook.hooks import Answer, Hook, http, serving

SIGNER = Signer(generate_key())
ALLOW = {"allow": True}
LOCAL = CallLimits(local_allowed=True)


def question(number: int = 1) -> Question:
    return Question(
        id=f"{number:032x}",
        device_id="cam-7",
        model="cam2",
        path="token",
        key_type="EC-P256",
        key_sha256=bytes(range(32)),
        address="192.0.2.7",
        at=datetime.now(UTC),
    )


@pytest.fixture
async def hook(tmp_path: Path) -> AsyncIterator[Hook]:
    async with serving(tmp_path) as hook:
        yield hook


@pytest.fixture
async def webhooks(hook: Hook) -> AsyncIterator[Webhooks]:
    made = Webhooks(
        SIGNER, client_context(hook.ca_file), limits=CallLimits(seconds_max=2.0, at_once_max=3, local_allowed=True)
    )
    yield made
    await made.close()


async def problem(webhooks: Webhooks, url: str) -> str:
    with pytest.raises(Unreachable) as caught:
        await webhooks.ask(url, question())
    assert caught.value.code == "webhook-failed"
    return caught.value.problem


class TestAsked:
    async def test_what_it_is_sent(self, hook: Hook, webhooks: Webhooks) -> None:
        hook.answer = http(ALLOW)
        asked = question()
        assert await webhooks.ask(hook.url, asked) == Verdict(allow=True)
        (sent,) = hook.asked
        assert (sent.method, sent.path) == ("POST", "/enroll?fleet=1")
        assert json.loads(sent.body) == {
            "id": asked.id,
            "device": "cam-7",
            "model": "cam2",
            "path": "token",
            "key_type": "EC-P256",
            "key_sha256": bytes(range(32)).hex(),
            "address": "192.0.2.7",
            "at": asked.at.isoformat().replace("+00:00", "Z"),
        }
        assert not {"cookie", "authorization"} & sent.headers.keys()
        assert (sent.headers["content-type"], sent.headers["user-agent"]) == ("application/json", "fleet")

    async def test_another_library_verifies_the_signature(self, hook: Hook, webhooks: Webhooks) -> None:
        hook.answer = http(ALLOW)
        await webhooks.ask(hook.url, question())
        (sent,) = hook.asked

        class Keys(HTTPSignatureKeyResolver):
            def resolve_public_key(self, key_id: str) -> bytes:
                assert key_id == SIGNER.key_id
                return SIGNER.public_pem().encode()

        verifier = HTTPMessageVerifier(signature_algorithm=ECDSA_P256_SHA256, key_resolver=Keys())

        def verified(url: str = hook.url, body: bytes = sent.body, **changed: str) -> list[VerifyResult]:
            message = SimpleNamespace(method="POST", url=url, headers={**sent.headers, **changed})
            return verifier.verify(message, expect_tag=TAG, require_components=COVERED, body=body)

        found = verified()
        assert [each.nonce for each in found] == [question().id]
        for forged in ({"url": hook.url + "0"}, {"body": sent.body + b" "}, {"content-type": "text/plain"}):
            with pytest.raises(InvalidSignature):
                verified(**forged)

    async def test_the_url_is_signed_as_it_arrives(self, hook: Hook, webhooks: Webhooks) -> None:
        hook.answer = http(ALLOW)
        for given, path in (("/ü b?x=ö#part", "/%C3%BC%20b?x=%C3%B6"), ("", "/")):
            await webhooks.ask(f"https://LOCALHOST:{hook.port}{given}", question())
            sent = hook.asked[-1]
            assert (sent.path, sent.headers["host"]) == (path, f"localhost:{hook.port}")

    async def test_each_is_asked_on_a_connection_of_its_own(self, hook: Hook, webhooks: Webhooks) -> None:
        hook.answer = http({"allow": False, "reason": "not on the list"})
        for number in range(3):
            assert await webhooks.ask(hook.url, question(number)) == Verdict(False, "not on the list")
        assert (len(hook.asked), hook.connections) == (3, 3)


async def dribble(writer: asyncio.StreamWriter) -> None:
    """Some of an answer every tenth of a second: each read is quick, and it never ends."""
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n")
    for _ in range(600):
        writer.write(b" ")
        await writer.drain()
        await asyncio.sleep(0.1)


async def silent(_: asyncio.StreamWriter) -> None:
    await asyncio.Event().wait()


async def hang_up(writer: asyncio.StreamWriter) -> None:
    writer.write(b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 14\r\n\r\n{"allow"')
    writer.close()


async def flood(writer: asyncio.StreamWriter) -> None:
    """Chunks without an end."""
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n")
    while not writer.is_closing():
        writer.write(b"4000\r\n" + b" " * 0x4000 + b"\r\n")
        await writer.drain()


class TestNoYes:
    @pytest.mark.parametrize(
        ("answer", "says"),
        [
            (http(ALLOW, "302 Found", "application/json", "Location: https://localhost/other"), "status 302"),
            (http(ALLOW, "307 Temporary Redirect", "application/json", "Location: /other"), "status 307"),
            (http(ALLOW, "201 Created"), "status 201"),
            (http(b"", "204 No Content"), "status 204"),
            (http(ALLOW, "500 Internal Server Error"), "status 500"),
            (http(ALLOW, "200 OK", "text/html"), "not JSON"),
            (http(ALLOW, "200 OK", "application/json", "Content-Encoding: gzip"), "not JSON"),
            (http(b"{" + b" " * ANSWER_SIZE_MAX + b"}"), "larger than"),
            (http(b"<html>yes</html>"), "not JSON"),
            (http(b""), "not JSON"),
            (b"SSH-2.0-OpenSSH_9.2\r\n", "not HTTP"),
            (b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", "not HTTP"),
            (flood, "larger than"),
            (hang_up, "not HTTP"),
        ],
    )
    async def test_an_answer_that_does_not_count(
        self, hook: Hook, webhooks: Webhooks, answer: Answer, says: str
    ) -> None:
        hook.answer = answer
        assert says in await problem(webhooks, hook.url)
        assert len(hook.asked) == 1  # not asked again, nor anybody else

    @pytest.mark.parametrize("answer", [silent, dribble])
    async def test_one_that_takes_too_long(self, hook: Hook, webhooks: Webhooks, answer: Answer) -> None:
        hook.answer = answer
        started = time.monotonic()
        assert await problem(webhooks, hook.url) == "it did not answer within 2 s"
        assert 1.9 < time.monotonic() - started < 50  # and not the sixty that one of them takes
        assert len(hook.asked) == 1

    async def test_a_certificate_of_a_stranger(self, hook: Hook, tmp_path: Path) -> None:
        for context in (client_context(None), client_context(await other_ca(tmp_path))):
            webhooks = Webhooks(SIGNER, context, limits=LOCAL)
            assert await problem(webhooks, hook.url) == "its certificate is not to be trusted"
            await webhooks.close()
        assert hook.asked == []

    async def test_a_certificate_for_another_name(self, tmp_path: Path) -> None:
        async with serving(tmp_path, ("elsewhere.example",)) as hook:
            webhooks = Webhooks(SIGNER, client_context(hook.ca_file), limits=LOCAL)
            assert await problem(webhooks, hook.url) == "its certificate is not to be trusted"
            await webhooks.close()
            assert hook.asked == []

    async def test_nobody_there(self, hook: Hook, webhooks: Webhooks) -> None:
        server = await asyncio.start_server(lambda _, w: w.close(), "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        assert await problem(webhooks, f"https://localhost:{port}/") in ("TLS with it failed", "it cannot be reached")
        server.close()
        await server.wait_closed()
        assert await problem(webhooks, f"https://localhost:{port}/") == "it cannot be reached"
        assert await problem(webhooks, "https://no-such-host.invalid/") == "it cannot be reached"

    async def test_a_slow_one_holds_only_so_many(self, hook: Hook, webhooks: Webhooks) -> None:
        hook.answer = silent
        held = [asyncio.create_task(webhooks.ask(hook.url, question(n))) for n in range(3)]
        await hook.has_been_asked(3)
        assert await problem(webhooks, hook.url) == "too many are being asked already"
        hook.answer = http(ALLOW)
        assert (await webhooks.ask(hook.url + "&another=1", question())).allow  # its neighbor holds up nobody
        assert not any(each.done() for each in held)
        outcomes = await asyncio.gather(*held, return_exceptions=True)
        assert [type(each) for each in outcomes] == [Unreachable] * 3
        hook.answer = http(ALLOW)
        assert (await webhooks.ask(hook.url, question())).allow

    async def test_no_proxy_out_of_the_environment(
        self, hook: Hook, webhooks: Webhooks, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, "http://127.0.0.1:9")
        hook.answer = http(ALLOW)
        assert (await webhooks.ask(hook.url, question())).allow


async def other_ca(folder: Path) -> Path:
    (folder / "other").mkdir()
    async with serving(folder / "other") as other:
        return other.ca_file


class TestAnswers:
    @pytest.mark.parametrize(
        ("answer", "verdict"),
        [
            ({"allow": True}, Verdict(True)),
            ({"allow": False}, Verdict(False)),
            ({"allow": False, "reason": "nicht auf der Liste ö"}, Verdict(False, "nicht auf der Liste ö")),
            (
                {"allow": True, "reason": "", "attributes": {"site": "Oslo East", "lot": "L7"}},
                Verdict(True, "", (("lot", "L7"), ("site", "Oslo East"))),
            ),
        ],
    )
    def test_that_counts(self, answer: object, verdict: Verdict) -> None:
        assert decode_answer(json.dumps(answer).encode()) == verdict

    @pytest.mark.parametrize(
        "answer",
        [
            "true",
            "[]",
            "null",
            "{}",
            '{"allow": 1}',
            '{"allow": "true"}',
            '{"allow": null}',
            '{"Allow": true}',
            '{"allow": true, "allow": false}',
            '{"allow": false, "allow": true}',
            '{"allow": true, "name": "cam-8"}',
            '{"allow": true, "model": "cam3"}',
            '{"allow": true, "reason": 7}',
            '{"allow": true, "reason": "two\\nlines"}',
            '{"allow": true, "reason": "' + "x" * 201 + '"}',
            '{"allow": true, "attributes": []}',
            '{"allow": true, "attributes": {"site": 7}}',
            '{"allow": true, "attributes": {"site": {"a": "b"}}}',
            '{"allow": true, "attributes": {"model": "cam3"}}',
            '{"allow": true, "attributes": {"state": "active"}}',
            '{"allow": true, "attributes": {"id": "cam-8"}}',
            '{"allow": true, "attributes": {"a b": "c"}}',
            '{"allow": true, "attributes": {"a": ""}}',
            '{"allow": true, "attributes": {"a": "\\u0000"}}',
            '{"allow": true, "attributes": {"a": "\\ud800"}}',
            '{"allow": true, "attributes": {"a": "' + "x" * 129 + '"}}',
            '{"allow": true, "attributes": {' + ", ".join(f'"a{n}": "b"' for n in range(33)) + "}}",
            '{"allow": true} {}',
            '{"allow": NaN}',
            "[" * 16000,
            '{"allow": ' + "9" * 5000 + "}",
            "\ufeff" + '{"allow": true}',
        ],
    )
    def test_that_does_not(self, answer: str) -> None:
        with pytest.raises(Unreachable):
            decode_answer(answer.encode())

    def test_that_is_no_text(self) -> None:
        for raw in (b'{"allow": true, "reason": "\xff"}', '{"allow": true}'.encode("utf-16")):
            with pytest.raises(Unreachable):
                decode_answer(raw)


def test_a_signature_is_64_octets_and_the_digest_is_of_the_body() -> None:
    for _ in range(50):  # an r or s with leading zeros comes one time in 128
        headers = SIGNER.headers("https://h/", b"{}", datetime.now(UTC), "n")
        assert len(base64.b64decode(headers["Signature"].removeprefix("fleet=:").removesuffix(":"))) == 64
    digest = base64.b64encode(hashlib.sha256(b"{}").digest()).decode()
    assert headers["Content-Digest"] == f"sha-256=:{digest}:"


async def test_a_ca_file_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("no PEM")
    os.mkfifo(tmp_path / "pipe.pem")
    (tmp_path / "large.pem").write_bytes((await other_ca(tmp_path)).read_bytes() + b"\n" * CERTIFICATES_SIZE_MAX)
    for name in ("ca.pem", "missing.pem", "pipe.pem", "large.pem"):
        with pytest.raises(Invalid) as caught:
            client_context(tmp_path / name)
        assert caught.value.code == "bad-webhook-ca"
        assert caught.value.message.startswith(f"webhook_ca: {tmp_path / name} cannot be used: ")
        assert "PEM" in caught.value.advice
    assert client_context(None).verify_mode is ssl.CERT_REQUIRED


class TestNames:
    async def test_one_that_hangs_keeps_no_other_waiting(self) -> None:
        """However many ask for it: asyncio's own lookups share a few threads."""
        ends, looked_up = threading.Event(), list[str]()

        def look_up(host: str, *_: object, **__: object) -> list[tuple[object, ...]]:
            looked_up.append(host)
            if host == "hangs.example":
                ends.wait(PATIENCE_SECONDS)
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("198.51.100.7", 0))]

        resolver = Resolver(local_allowed=False, look_up=look_up)
        hanging = [asyncio.create_task(resolver.resolve("hangs.example", 443)) for _ in range(100)]
        async with asyncio.timeout(60):
            for n in range(40):
                [found] = await resolver.resolve(f"well-{n}.example", 443)
        assert (found["host"], found["port"]) == ("198.51.100.7", 443)
        assert looked_up.count("hangs.example") == 1
        hanging[0].cancel()  # its time is over, and the others' is not
        ends.set()
        async with asyncio.timeout(60):
            assert [len(each) for each in await asyncio.gather(*hanging[1:])] == [1] * 99
        await resolver.close()

    async def test_no_more_lookups_than_there_may_be(self) -> None:
        ends = threading.Event()

        def look_up(host: str, *_: object, **__: object) -> list[tuple[object, ...]]:
            ends.wait(PATIENCE_SECONDS)
            raise socket.gaierror(socket.EAI_NONAME, "no such name")

        resolver = Resolver(local_allowed=False, look_up=look_up)
        hanging = [asyncio.create_task(resolver.resolve(f"{n}.example")) for n in range(LOOKUPS_MAX)]
        await asyncio.sleep(0)
        with pytest.raises(Unreachable) as caught:
            await resolver.resolve("one-more.example")
        assert "too many names" in caught.value.problem
        ends.set()
        async with asyncio.timeout(60):
            outcomes = await asyncio.gather(*hanging, return_exceptions=True)
        assert {type(each) for each in outcomes} == {socket.gaierror}

    @pytest.mark.parametrize(
        "address",
        [
            "127.0.0.1",
            "127.9.9.9",
            "::1",
            "::ffff:127.0.0.1",
            "169.254.169.254",
            "fe80::1%eth0",
            "0.0.0.0",
            "0.1.2.3",
            "::",
        ],
    )
    async def test_local_addresses_are_refused(self, address: str) -> None:
        """As a name's, and as the URL's."""

        def look_up(*_: object, **__: object) -> list[tuple[object, ...]]:
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0))]

        with pytest.raises(Unreachable) as caught:
            await Resolver(local_allowed=False, look_up=look_up).resolve("hook.example")
        assert "loopback or link-local" in caught.value.problem
        [found] = await Resolver(local_allowed=True, look_up=look_up).resolve("hook.example")
        assert found["host"] == address
        webhooks = Webhooks(SIGNER, client_context(None))
        host = f"[{address.partition('%')[0]}]" if ":" in address else address
        assert "loopback or link-local" in await problem(webhooks, f"https://{host}/")
        await webhooks.close()

    async def test_by_default_this_host_is_not_asked(self, hook: Hook) -> None:
        webhooks = Webhooks(SIGNER, client_context(hook.ca_file))
        assert "loopback or link-local" in await problem(webhooks, hook.url)
        assert hook.connections == 0
        await webhooks.close()

    @pytest.mark.parametrize("address", ["192.0.2.7", "10.0.0.1", "2001:db8::1", "fd00::1"])
    def test_others_are_not(self, address: str) -> None:
        must_be_remote(address)
