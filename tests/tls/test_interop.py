"""The room against clients that are not ours: openssl, curl, Python's ssl; and under aiohttp."""

import asyncio
import re
import shutil
import socket
import ssl
from pathlib import Path

import pytest
from aiohttp import ClientSession, TCPConnector, web

from fleet.domain.peer import Peer
from fleet.tls.contexts import ContextSource
from fleet.tls.errors import Refusal
from fleet.tls.listener import listen
from tests.tls.stage import Pair, Recorder, Stage, echoing, pki, serving, stdlib_client
from tests.waiting import PATIENCE_SECONDS

needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")

ALERTS = "alert (certificate required|handshake failure|unknown ca|certificate expired|unsupported certificate)"

VERSIONS = ["tls1_2", "tls1_3"]


async def run(*command: str, typed: bytes = b"") -> tuple[int, str]:
    """Exit code and everything that was printed."""
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    async with asyncio.timeout(PATIENCE_SECONDS):
        printed, _ = await process.communicate(typed)
    return process.returncode or 0, printed.decode(errors="replace")


def hang_up(application: Recorder, data: bytes) -> None:
    application.transport.write(b"heard: " + data)
    application.transport.close()


def hanging_up(peer: Peer) -> Recorder:
    """It answers and closes, so that s_client, which never closes by itself, comes to an end."""
    return Recorder(peer, on_data=hang_up)


async def s_client(stage: Stage, directory: Path, pair: Pair | None, *options: str) -> str:
    root, _ = pki().root.write(directory / "root")
    command = ["openssl", "s_client", "-connect", f"127.0.0.1:{stage.port}", "-CAfile", root, "-ign_eof", *options]
    if pair is not None:
        certificate, key = pair.write(directory / "client")
        command += ["-cert", certificate, "-key", key]
    return (await run(*command, typed=b"hello\n"))[1]


@needs_openssl
@pytest.mark.parametrize("version", VERSIONS)
async def test_s_client_with_a_good_certificate(version: str, tmp_path: Path) -> None:
    async with serving(hanging_up) as stage:
        printed = await s_client(stage, tmp_path, pki().good, f"-{version}", "-verify_return_error")
        assert "heard: hello" in printed
        assert "Verify return code: 0 (ok)" in printed
        assert "Compression: NONE" in printed
        assert "Secure Renegotiation IS" in printed or version == "tls1_3"
        assert stage.applications[0].peer.certificate_der == pki().good.der


@needs_openssl
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("kind", ["none", "foreign", "expired", "server-only", "no-usage"])
async def test_s_client_with_a_bad_certificate(kind: str, version: str, tmp_path: Path) -> None:
    async with serving(hanging_up) as stage:
        printed = await s_client(stage, tmp_path, pki().bad.get(kind), f"-{version}")
        assert re.search(ALERTS, printed)
        assert "heard" not in printed
        reason = await stage.refusal()
        assert reason.startswith(Refusal.NO_CERTIFICATE if kind == "none" else Refusal.BAD_CERTIFICATE)
        assert not stage.applications


@needs_openssl
async def test_s_client_agrees_on_the_exporter(tmp_path: Path) -> None:
    options = ("-tls1_3", "-keymatexport", "EXPORTER-Channel-Binding", "-keymatexportlen", "32")
    async with serving(hanging_up) as stage:
        printed = await s_client(stage, tmp_path, pki().good, *options)
        found = re.search(r"Keying material: ([0-9A-F]{64})", printed)
        assert found
        assert bytes.fromhex(found[1]) == stage.applications[0].peer.channel_binding
        assert stage.applications[0].peer.channel_binding_type == "tls-exporter"


@needs_openssl
@pytest.mark.parametrize("version", VERSIONS)
async def test_s_client_gets_nothing_to_resume(version: str, tmp_path: Path) -> None:
    saved = tmp_path / "session.pem"
    async with serving(hanging_up) as stage:
        printed = await s_client(stage, tmp_path, pki().good, f"-{version}", "-sess_out", str(saved))
        assert "New, TLSv1" in printed
        assert not saved.exists()  # neither session id nor ticket: there was nothing to keep


@needs_openssl
async def test_s_client_reconnecting_resumes_nothing(tmp_path: Path) -> None:
    """-reconnect connects five more times with the session of the first; the last one talks."""
    async with serving(hanging_up) as stage:
        printed = await s_client(stage, tmp_path, pki().good, "-tls1_2", "-reconnect")
        assert "Reused" not in printed
        assert printed.count("New, TLSv1.2") == 6
        assert stage.listener.stats.established == 6


@needs_openssl
async def test_s_client_cannot_renegotiate(tmp_path: Path) -> None:
    root, _ = pki().root.write(tmp_path / "root")
    certificate, key = pki().good.write(tmp_path / "client")
    async with serving(echoing) as stage:
        _, printed = await run(
            *("openssl", "s_client", "-connect", f"127.0.0.1:{stage.port}", "-CAfile", root, "-tls1_2"),
            *("-cert", certificate, "-key", key),
            typed=b"R\n",
        )
        assert "RENEGOTIATING" in printed
        assert "no renegotiation" in printed


@needs_openssl
@pytest.mark.parametrize("letter", [b"k", b"K"])
async def test_s_client_updates_its_keys_in_the_midst(letter: bytes, tmp_path: Path) -> None:
    """RFC 8446, 4.6.3; K asks for our update as well."""
    root, _ = pki().root.write(tmp_path / "root")
    certificate, key = pki().good.write(tmp_path / "client")
    async with serving(echoing) as stage:
        process = await asyncio.create_subprocess_exec(
            *("openssl", "s_client", "-connect", f"127.0.0.1:{stage.port}", "-CAfile", root, "-tls1_3"),
            *("-cert", certificate, "-key", key),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        assert process.stdin and process.stdout  # noqa: PT018
        async with asyncio.timeout(PATIENCE_SECONDS):
            for n in range(3):
                process.stdin.write(b"before %d\n" % n)
                await process.stdout.readuntil(b"before %d\n" % n)
                process.stdin.write(letter + b"\n")
                await process.stdout.readuntil(b"KEYUPDATE\n")
                process.stdin.write(b"after %d\n" % n)
                await process.stdout.readuntil(b"after %d\n" % n)
            process.stdin.write(b"Q\n")
            await process.wait()
        assert await (await stage.application()).lost() is None


@needs_openssl
@pytest.mark.parametrize("old", ["tls1", "tls1_1"])
async def test_s_client_of_old_is_refused(old: str, tmp_path: Path) -> None:
    async with serving(hanging_up) as stage:
        printed = await s_client(stage, tmp_path, pki().good, f"-{old}", "-cipher", "ALL:@SECLEVEL=0")
        assert "heard" not in printed
        assert stage.listener.stats.established == 0


# curl


@needs_curl
@pytest.mark.parametrize("version", ["1.2", "1.3"])
async def test_curl(version: str, tmp_path: Path) -> None:
    def answer(application: Recorder, data: bytes) -> None:
        application.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n")
        application.transport.write(b"yes")

    root, _ = pki().root.write(tmp_path / "root")
    certificate, key = pki().good.write(tmp_path / "client")
    async with serving(lambda peer: Recorder(peer, on_data=answer)) as stage:
        code, printed = await run(
            *("curl", "-sS", f"--tlsv{version}", "--tls-max", version, "--cacert", root, "--cert", certificate),
            *("--key", key, f"https://127.0.0.1:{stage.port}/"),
        )
        assert (code, printed) == (0, "yes")
        assert (await stage.application()).peer.tls_version == f"TLSv{version}"


@needs_curl
async def test_curl_in_plain_http_is_refused() -> None:
    async with serving() as stage:
        code, _ = await run("curl", "-sS", f"http://127.0.0.1:{stage.port}/")
        assert code in (52, 56)  # empty reply, or reset
        assert (await stage.refusal()).startswith(Refusal.NOT_TLS)


@needs_curl
async def test_curl_without_a_certificate_is_refused(tmp_path: Path) -> None:
    root, _ = pki().root.write(tmp_path / "root")
    async with serving() as stage:
        code, printed = await run("curl", "-sS", "--cacert", root, f"https://127.0.0.1:{stage.port}/")
        assert code == 56
        assert "certificate required" in printed
        assert await stage.refusal() == Refusal.NO_CERTIFICATE


# Python's ssl


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_stdlib_ssl(version: ssl.TLSVersion, tmp_path: Path) -> None:
    context = stdlib_client(tmp_path, pki().good)
    context.minimum_version = context.maximum_version = version
    async with serving(echoing) as stage:
        reader, writer = await asyncio.open_connection("localhost", stage.port, ssl=context, family=2)
        writer.write(b"hello")
        async with asyncio.timeout(PATIENCE_SECONDS):
            assert await reader.readexactly(5) == b"hello"
        engine_object = writer.get_extra_info("ssl_object")
        peer = stage.applications[0].peer
        assert not engine_object.session_reused
        assert peer.cipher == engine_object.cipher()[0]
        assert peer.tls_version == engine_object.version()
        if version is ssl.TLSVersion.TLSv1_2:
            assert peer.channel_binding_type == "tls-unique"
            assert peer.channel_binding == engine_object.get_channel_binding("tls-unique")
        writer.close()
        assert await stage.applications[0].lost() is None


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_stdlib_ssl_resumes_nothing(version: ssl.TLSVersion, tmp_path: Path) -> None:
    context = stdlib_client(tmp_path, pki().good)
    context.minimum_version = context.maximum_version = version

    def twice(port: int) -> list[bool]:
        reused, session = [], None
        for _ in range(2):
            tls = context.wrap_bio(
                incoming := ssl.MemoryBIO(), outgoing := ssl.MemoryBIO(), False, "localhost", session
            )
            reused.append(converse(port, tls, incoming, outgoing))
            session = tls.session
        return reused

    async with serving(hanging_up) as stage:
        assert await asyncio.to_thread(twice, stage.port) == [False, False]
        assert stage.listener.stats.established == 2


def converse(port: int, tls: ssl.SSLObject, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO) -> bool:
    """One question and answer; whether the session was resumed."""
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_SECONDS) as raw:

        def step(action: str, *arguments: object) -> object:
            while True:
                try:
                    return getattr(tls, action)(*arguments)
                except ssl.SSLWantReadError:
                    raw.sendall(outgoing.read())
                    incoming.write(raw.recv(1 << 16))

        step("do_handshake")
        step("write", b"?")
        assert step("read", 100) == b"heard: ?"
        return bool(tls.session_reused)


# aiohttp


async def test_aiohttp_runs_on_it(tmp_path: Path) -> None:
    seen: list[Peer] = []

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        assert request.transport is not None
        seen.append(request.transport.get_extra_info("peer"))
        if request.path == "/up":
            return web.Response(text=f"{request.scheme} {request.remote} {len(await request.read())}")
        if request.path == "/down":
            return web.Response(body=b"z" * 3_000_000)
        response = web.StreamResponse()
        await response.prepare(request)
        for n in range(100):
            await response.write(b"%04d" % n)
        return response

    server = web.Server(handle)
    listener = await listen(lambda peer: server(), ("127.0.0.1", 0), contexts=ContextSource(pki().context()))
    connector = TCPConnector(ssl=stdlib_client(tmp_path, pki().good), family=socket.AF_INET)
    base = f"https://localhost:{listener.port}"
    try:
        async with asyncio.timeout(PATIENCE_SECONDS), ClientSession(connector=connector) as client:
            async with client.post(f"{base}/up", data=b"y" * 1_000_000) as answer:
                assert await answer.text() == "https 127.0.0.1 1000000"
            async with client.get(f"{base}/down") as answer:
                assert len(await answer.read()) == 3_000_000
            async with client.get(f"{base}/chunks") as answer:
                assert await answer.read() == b"".join(b"%04d" % n for n in range(100))
        assert {peer.fingerprint for peer in seen} == {seen[0].fingerprint}
        assert seen[0].certificate_der == pki().good.der
        assert listener.stats.accepted == 1
    finally:
        listener.close()
        await server.shutdown(1)
        async with asyncio.timeout(PATIENCE_SECONDS):
            await listener.wait_closed()
