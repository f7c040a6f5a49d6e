"""OCSP over HTTP (RFC 6960, A): requests are answered from the registry's state; without a nonce, from a cache.

What is not an OCSP request is answered as OCSP has it, with malformedRequest; only its size and its media type are
HTTP's.
"""

import asyncio
import base64
import binascii
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Protocol
from urllib.parse import unquote_to_bytes

from fleet.ca.ocsp import IssuerId, Responder
from fleet.config.clock import Clock
from fleet.config.logs import log_event
from fleet.domain.backdating import BACKDATED_STATUS
from fleet.domain.distribution import OCSP_PATH
from fleet.domain.errors import Unavailable
from fleet.domain.ports import Registry
from fleet.domain.published_file import PublishedFile
from fleet.servers.http import Exchange
from fleet.servers.http_response import Response
from fleet.servers.publish.conditional import answer_file
from fleet.servers.refusals import HttpRefused
from fleet.services.ocsp import CertificateState, ResponseCache, certificate_state
from fleet.wire.errors import WireError
from fleet.wire.ocsp import (
    REQUEST_SIZE_MAX,
    REQUEST_TYPE,
    RESPONSE_TYPE,
    CertId,
    Failure,
    OcspRequest,
    Revoked,
    SingleResponse,
    Unrevoked,
    encode_failure,
    read_request,
)

log = logging.getLogger("fleet.servers.publish")

VALIDITY = timedelta(hours=1)
"""From an answer to its nextUpdate: what a relying party that caches may miss of a revocation."""
CACHED_FOR = timedelta(minutes=15)
"""A cached answer is signed anew after that: a client that gets it may use it for most of its validity."""
FRESH = timedelta(seconds=60)
"""For a proxy to give an answer without asking again."""

_BASE64 = re.compile(rb"[A-Za-z0-9+/]+={0,2}")


SIGNED_AT_ONCE_MAX = 4
"""Answers in the making: in a storm of requests others wait, and enrollment has its share of each turn of the loop."""
CACHED_REQUEST_SIZE_MAX = 512
"""Of a request whose answer is cached: one for a certificate has 80 to 160 octets."""


@dataclass(frozen=True, slots=True)
class OcspAnswer:
    """A response with what its transport and its log line say of it."""

    der: bytes
    code: str = "ok"
    serial: str = "-"
    file: PublishedFile | None = None
    """The same for caches, where they may keep it."""


class Responders(Protocol):
    """The responders of a home."""

    def find(self, issuer: IssuerId) -> Responder | None:
        """The responder of the CA that a request names so; None: it is no CA of ours, or its key is not here."""

    def fleet_responder(self) -> Responder | None:
        """That of the fleet's own issuing CA: it says that a certificate of a foreign CA is unknown."""

    def is_server(self, issuer: IssuerId, serial: int) -> bool:
        """Whether `serial` of `issuer` is the server's own certificate, which is in no registry."""


@dataclass(slots=True)
class OcspHandler:
    """Answers OCSP requests."""

    registry: Registry
    responders: Responders
    clock: Clock
    feed_is_up: Callable[[], bool] = lambda: False
    """Whether `cache` receives the registry's events in time; else nothing is cached."""
    cache: ResponseCache[OcspAnswer] = field(default_factory=ResponseCache)
    _signing_slots: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(SIGNED_AT_ONCE_MAX))

    async def handle(self, exchange: Exchange) -> Response:
        """The response to a request below OCSP_PATH. Raises: HttpRefused."""
        answer = await self.answer(await _request_in(exchange))
        exchange.code, exchange.serial = answer.code, answer.serial
        if answer.file is None:
            return Response(200, answer.der, {"Content-Type": RESPONSE_TYPE, "Cache-Control": "no-store"})
        return answer_file(answer.file, exchange.request.headers, self.clock())

    async def answer(self, data: bytes) -> OcspAnswer:
        """The response to `data`, which may be anything."""
        now = self.clock()
        if self.feed_is_up() and (cached := self.cache.find(data, now)) is not None:
            return cached
        try:
            request = read_request(data)
            async with self._signing_slots:
                generation = self.cache.generation
                answer, holder = await self._signed(request, now)
        except WireError:
            return _failure(Failure.MALFORMED_REQUEST)
        except Unavailable as error:
            log_event(log, logging.ERROR, "publish.ocsp", code=error.code, reason=error.message)
            return _failure(Failure.TRY_LATER)
        if holder and answer.file is not None and len(data) <= CACHED_REQUEST_SIZE_MAX and self.feed_is_up():
            self.cache.add(data, answer, holder, now + CACHED_FOR, generation)
        return answer

    async def _signed(self, request: OcspRequest, now: datetime) -> tuple[OcspAnswer, str]:
        """The answer, and the holder of the certificate where it is one's."""
        by_issuer = {asked.issuer: self.responders.find(asked.issuer) for asked in request.certificates}
        found = {responder for responder in by_issuer.values() if responder is not None}
        # RFC 6960, 4.2.2.2: a delegated responder answers for the CA that has issued its certificate, and no other.
        responder = next(iter(found), None) or self.responders.fleet_responder()
        if responder is None or len(found) > 1:
            return _failure(Failure.UNAUTHORIZED), ""
        states = [
            await self._state(asked, responder, now) if by_issuer[asked.issuer] is not None else None
            for asked in request.certificates
        ]
        singles = [_single(asked, state, now) for asked, state in zip(request.certificates, states, strict=True)]
        answer = OcspAnswer(
            responder.sign(singles, now, request.nonce), serial=f"{abs(singles[0].certificate.serial):x}"
        )
        state, since = states[0], singles[0].this_update
        if state is None or len(states) > 1 or request.nonce is not None:
            return answer, ""
        file = PublishedFile(answer.der, RESPONSE_TYPE, since, FRESH, since + VALIDITY)
        return replace(answer, file=file), state.holder

    async def _state(self, asked: CertId, responder: Responder, now: datetime) -> CertificateState | None:
        if self.responders.is_server(asked.issuer, asked.serial):
            return CertificateState("")
        issuer, has_issued = responder.key_identifier, responder.has_issued
        return await certificate_state(self.registry, asked.serial, issuer, has_issued, now)


def _single(asked: CertId, state: CertificateState | None, now: datetime) -> SingleResponse:
    this_update, status = now - BACKDATED_STATUS, Unrevoked.UNKNOWN if state is None else Unrevoked.GOOD
    if state is None or state.revoked_at is None:
        return SingleResponse(asked, status, this_update, this_update + VALIDITY)
    this_update = max(this_update, min(state.revoked_at, now))
    return SingleResponse(asked, Revoked(state.revoked_at, state.reason), this_update, this_update + VALIDITY)


def _failure(failure: Failure) -> OcspAnswer:
    return OcspAnswer(encode_failure(failure), failure.name.lower().replace("_", "-"))


async def _request_in(exchange: Exchange) -> bytes:
    """The request in a body, or in the path of a GET; nothing where that is no base64."""
    method, path = exchange.request.method, exchange.request.url.raw_path_qs
    if method == "POST" and path == OCSP_PATH:
        media_type = exchange.request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if media_type != REQUEST_TYPE:
            raise HttpRefused(415, "bad-content-type", f"An OCSP request is of the type {REQUEST_TYPE}.")
        return await exchange.body(REQUEST_SIZE_MAX)
    if method in ("GET", "HEAD") and path != OCSP_PATH:
        return _decoded(path.removeprefix(OCSP_PATH))
    allowed = "POST" if path == OCSP_PATH else "GET, HEAD"
    raise HttpRefused(405, "bad-method", f"This path takes {allowed} only.", {"Allow": allowed})


def _decoded(path: str) -> bytes:
    """RFC 6960, A.1: the request in base64, percent-encoded or not. A slash may stand before it twice: the one of a URL
    that ends with a slash, and the client's own.
    """
    text = unquote_to_bytes(path).lstrip(b"/")
    if not _BASE64.fullmatch(text):
        return b""
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error:
        return b""
