"""The OCSP answer about the server's certificate, as TLS clients find it in the handshake."""

import asyncio
import shutil
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest
from cryptography.x509 import ocsp

from fleet.ca.authority import RESPONDER_LIFETIME
from fleet.ca.ocsp import RENEW_BEFORE
from fleet.config.settings import Settings
from fleet.home.authorities import new_issuing_key, read_authorities
from fleet.home.creation import create_home
from fleet.home.layout import Home
from fleet.home.pki import server_identity
from fleet.home.relying_parties import RENEW_AFTER, OcspResponders, ServerStaple
from fleet.runtime.jobs.server_certificate import Contexts
from fleet.tls.listener import listen
from tests.waiting import PATIENCE_SECONDS

START = datetime.now(UTC)


class Clock:
    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
async def home(tmp_path: Path) -> Home:
    return await create_home(tmp_path / "home", Settings(), START)


def staple_of(home: Home, clock: Clock) -> ServerStaple:
    responders = OcspResponders(home, partial(read_authorities, home), clock)
    return ServerStaple(server_identity(home).certificate_chain[0], responders, clock)


async def said_by(*words: str) -> str:
    program = await asyncio.create_subprocess_exec(
        *words, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    async with asyncio.timeout(PATIENCE_SECONDS):
        output, _ = await program.communicate()
    return output.decode()


async def test_openssl_and_gnutls_take_it_and_nobody_gets_it_unasked(home: Home) -> None:
    clock = Clock()
    responders = OcspResponders(home, partial(read_authorities, home), clock)
    contexts = Contexts.of(home, clock, stapler=partial(ServerStaple, responders=responders, clock=clock))
    listener = await listen(lambda peer: asyncio.Protocol(), ("127.0.0.1", 0), contexts=contexts.est)
    try:
        root = str(home.root_certificate)
        connect = ("openssl", "s_client", "-connect", f"localhost:{listener.port}", "-CAfile", root)
        for version in ("-tls1_3", "-tls1_2"):
            found = await said_by(*connect, version, "-status")
            assert "OCSP Response Status: successful" in found, found
            assert "Cert Status: good" in found
            assert "OCSP response" not in await said_by(*connect, version)
        if shutil.which("gnutls-cli"):
            gnutls = ("gnutls-cli", "--x509cafile", root, "--port", str(listener.port), "localhost", "--verbose")
            found = await said_by(*gnutls)
            assert "OCSP status request" in found, found
            assert "The certificate is trusted" in found, found
    finally:
        listener.close()
        listener.abort_connections()


async def test_it_is_made_anew_in_time_and_with_a_new_delegated_certificate(home: Home) -> None:
    clock = Clock()
    staple = staple_of(home, clock)
    first = ocsp.load_der_ocsp_response(staple())
    clock.now += RENEW_AFTER - timedelta(seconds=1)
    assert ocsp.load_der_ocsp_response(staple()).tbs_response_bytes == first.tbs_response_bytes
    clock.now += timedelta(seconds=1)
    second = ocsp.load_der_ocsp_response(staple())
    assert second.produced_at_utc > first.produced_at_utc
    assert second.certificates == first.certificates
    clock.now = START + RESPONDER_LIFETIME - RENEW_BEFORE
    third = ocsp.load_der_ocsp_response(staple())
    assert third.certificates[0].not_valid_after_utc > first.certificates[0].not_valid_after_utc
    assert third.responder_key_hash == first.responder_key_hash, "the key stays"
    assert third.next_update_utc is not None
    assert third.next_update_utc < third.certificates[0].not_valid_after_utc


async def test_a_ca_before_a_rollover_answers_still(home: Home) -> None:
    clock = Clock()
    before = read_authorities(home).own.issuing
    new_issuing_key(home, "", START)
    found = ocsp.load_der_ocsp_response(staple_of(home, clock)())
    found.certificates[0].verify_directly_issued_by(before)


async def test_without_the_key_nothing_is_stapled_and_it_is_logged_once(
    home: Home, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    home.issuing_key.unlink()
    authorities = read_authorities(home)
    responders = OcspResponders(home, lambda: authorities, clock)
    certificate = server_identity(home).certificate_chain[0]
    for _ in range(3):
        assert ServerStaple(certificate, responders, clock)() == b""
    assert caplog.text.count("outcome=not-delegated") == 1
