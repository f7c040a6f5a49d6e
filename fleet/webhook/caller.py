"""Webhook client: external authorization over HTTPS. Any failure counts as a denial.

The URL is set by an operator and the response is untrusted: the server certificate is verified, redirects are not
followed, no proxy is used, size and time are bounded, and only the verdict is returned.
"""

import asyncio
import ipaddress
import ssl
from collections import Counter
from collections.abc import Awaitable
from dataclasses import dataclass
from pathlib import Path

import aiohttp
from yarl import URL

from fleet.config.small_files import CERTIFICATES_SIZE_MAX, read_small
from fleet.domain.authorization import Question, Verdict
from fleet.domain.errors import Unreachable
from fleet.domain.files_of_settings import certificate_file
from fleet.webhook.messages import ANSWER_SIZE_MAX, decode_answer, encode_question
from fleet.webhook.resolver import Resolver, must_be_remote
from fleet.webhook.signing import CONTENT_TYPE, Signer
from fleet.wire.ca_file import ca_pem

SECONDS_MAX = 5.0
AT_ONCE_MAX = 64  # to one URL: if each takes its five seconds, a dozen a second still complete


@dataclass(frozen=True, slots=True)
class CallLimits:
    seconds_max: float = SECONDS_MAX
    """For everything: name resolution, connection, handshake, response."""
    at_once_max: int = AT_ONCE_MAX
    """Concurrent calls to one URL, so that a hanging one delays no other. Beyond it a call fails at once."""
    local_allowed: bool = False
    """Whether a webhook may have a loopback or link-local address."""


DEFAULT_CALL_LIMITS = CallLimits()


def client_context(ca_file: Path | None) -> ssl.SSLContext:
    """A client context that trusts the CAs in `ca_file`, or the system's. Raises: Invalid (`bad-webhook-ca`)."""
    if ca_file is None:
        return ssl.create_default_context()
    with certificate_file("webhook_ca", ca_file, "bad-webhook-ca"):
        return ssl.create_default_context(cadata=ca_pem(read_small(ca_file, CERTIFICATES_SIZE_MAX)))


class Webhooks:
    """A `fleet.services.authorization.Authorizer`. Created and closed within one event loop."""

    def __init__(self, signer: Signer, context: ssl.SSLContext, *, limits: CallLimits = DEFAULT_CALL_LIMITS) -> None:
        self._signer = signer
        self._context = context
        self._limits = limits
        self._session: aiohttp.ClientSession | None = None
        self._under_way: Counter[str] = Counter()
        """By URL."""

    async def ask(self, url: str, question: Question) -> Verdict:
        if self._under_way[url] >= self._limits.at_once_max:
            raise Unreachable("too many are being asked already")
        self._under_way[url] += 1
        try:
            async with asyncio.timeout(self._limits.seconds_max):
                return await _explained(self._answer(url, question))
        except TimeoutError:
            raise Unreachable(f"it did not answer within {self._limits.seconds_max:g} s") from None
        finally:
            self._under_way[url] -= 1
            self._under_way += Counter()  # drops zero counts

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _answer(self, url: str, question: Question) -> Verdict:
        body = encode_question(question)
        target = _target(url)
        if not self._limits.local_allowed and target.host is not None and _is_address(target.host):
            must_be_remote(target.host)  # a name is judged by what it resolves to
        headers = {
            **self._signer.headers(str(target), body, question.at, question.id),
            "Accept": CONTENT_TYPE,
            "Accept-Encoding": "identity",
            "User-Agent": "fleet",
        }
        session = self._opened()
        async with session.post(target, data=body, headers=headers, allow_redirects=False) as response:
            if response.status != 200:
                raise Unreachable(f"it answered with status {response.status}")
            if response.content_type != CONTENT_TYPE or "Content-Encoding" in response.headers:
                raise Unreachable("its answer is not JSON")
            answer = bytearray()
            async for part in response.content.iter_any():
                answer += part
                if len(answer) > ANSWER_SIZE_MAX:
                    raise Unreachable(f"its answer is larger than {ANSWER_SIZE_MAX} bytes")
        return decode_answer(bytes(answer))

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                # A new connection for each: a POST on one that the webhook just closed would be lost.
                connector=aiohttp.TCPConnector(
                    ssl=self._context,
                    limit=0,
                    force_close=True,
                    resolver=Resolver(local_allowed=self._limits.local_allowed),
                    use_dns_cache=False,  # nor its lookups, which are one for a name and a port
                ),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                trust_env=False,  # no proxy from the environment, no .netrc
                timeout=aiohttp.ClientTimeout(total=None),  # our timeout covers all of it
            )
        return self._session


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True


def _target(url: str) -> URL:
    """`url` as the receiver sees it: the URL signed must equal the URL sent, octet by octet."""
    try:
        given = URL(url)
        return URL(f"https://{given.host_port_subcomponent}{given.raw_path_qs}", encoded=True)
    except ValueError as error:
        raise Unreachable("its URL cannot be used") from error


async def _explained(answer: Awaitable[Verdict]) -> Verdict:
    """Raises: Unreachable: with the cause, quoting nothing of the response."""
    try:
        return await answer
    except aiohttp.ClientConnectorCertificateError as error:
        raise Unreachable("its certificate is not to be trusted") from error
    except aiohttp.ClientSSLError as error:
        raise Unreachable("TLS with it failed") from error
    except aiohttp.ClientConnectionError as error:
        raise Unreachable("it cannot be reached") from error
    except (aiohttp.ClientError, ValueError) as error:
        raise Unreachable("its answer is not HTTP") from error
