"""What a client checks of a server beyond OpenSSL: pinned keys, and the dates by another clock than the system's.

Standard library only. The checks run at the end of the handshake, before anything is sent.
"""

import hashlib
import re
import ssl
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from fleet.est_client.errors import BadConfig
from fleet.wire import der
from fleet.wire.errors import Malformed, WireError

NOT_PINNED = 50  # X509_V_ERR_APPLICATION_VERIFICATION, as the code of a chain without a pinned key
_PIN = re.compile(r"sha256:[0-9a-f]{64}")


class ServerRejected(ssl.SSLCertVerificationError):
    """The chain verified, and the server is refused nonetheless."""

    def __init__(self, message: str, code: int = 0) -> None:
        super().__init__(1, message)
        self.verify_message = message
        self.verify_code = code


@dataclass(frozen=True, slots=True)
class ServerTime:
    """The time that an authenticated server said, and the validity of its certificate."""

    at: datetime
    begin: datetime
    end: datetime

    @classmethod
    def of(cls, date: str, certificate_der: bytes) -> "ServerTime | None":
        """From an HTTP Date (RFC 9110, 6.6.1); None if it cannot be read."""
        from email.utils import parsedate_to_datetime  # loads much, for the one who has a Date

        try:
            at = parsedate_to_datetime(date)
            return cls(at.astimezone(UTC), *validity_of(certificate_der)) if at.tzinfo else None
        except (ValueError, TypeError, LookupError, OverflowError, WireError):
            return None


_NOT_YET_VALID, _EXPIRED = 9, 10  # X509_V_ERR_CERT_NOT_YET_VALID, X509_V_ERR_CERT_HAS_EXPIRED


def is_about_dates(error: BaseException | None) -> bool:
    """Whether a certificate did not verify because of its dates: the server's, or our clock is wrong."""
    return isinstance(error, ssl.SSLCertVerificationError) and error.verify_code in (_NOT_YET_VALID, _EXPIRED)


def parse_pin(text: str) -> str:
    """`text` in lower case, if it is `sha256:` and 64 hex digits. Raises: BadConfig."""
    pin = text.strip().lower()
    if not _PIN.fullmatch(pin):
        raise BadConfig(
            f"{text[:100]!r} is not a pin.", "Write it as sha256:HEX, over the SubjectPublicKeyInfo (RFC 7469, 2.4)."
        )
    return pin


def pin_of(certificate_der: bytes) -> str:
    """The pin of a certificate's key: SHA-256 over its DER SubjectPublicKeyInfo. Raises: WireError."""
    return f"sha256:{hashlib.sha256(_fields(certificate_der)[_SPKI].whole).hexdigest()}"


def validity_of(certificate_der: bytes) -> tuple[datetime, datetime]:
    """notBefore and notAfter. Raises: WireError."""
    begin, end = der.children(_fields(certificate_der)[_VALIDITY])
    return _time(begin), _time(end)


def _fields(certificate_der: bytes) -> list[der.Element]:
    # RFC 5280, 4.1, but for the version: serialNumber, signature, issuer, validity, subject, subjectPublicKeyInfo
    tbs = next(der.children(der.only_element(certificate_der, der.SEQUENCE)), None)
    fields = [each for each in der.children(tbs) if each.tag != der.CONTEXT_0] if tbs else []
    if len(fields) <= _SPKI:
        raise Malformed("it is no certificate")
    return fields


_VALIDITY, _SPKI = 3, 5


def _time(element: der.Element) -> datetime:
    text = element.content.decode("ascii", "replace")
    if element.tag == der.UTC_TIME:  # RFC 5280, 4.1.2.5.1
        text = ("19" if text >= "50" else "20") + text
    try:
        return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)
    except ValueError:
        raise Malformed("it is no time of a certificate") from None


def also_check(context: ssl.SSLContext, *, pins: Collection[str] = (), at: datetime | None = None) -> None:
    """Let the connections of `context` also fail unless a key of the server's chain is pinned, if there are `pins`;
    and, where `at` is given, unless the chain is valid at that time."""

    class CheckedSocket(ssl.SSLSocket):
        def do_handshake(self, block: bool = False) -> None:
            super().do_handshake(block)
            chain = _verified_chain(self)
            try:
                if at is not None:
                    _check_dates(chain, at)
                if pins:
                    _check_pins(chain, pins)
            except WireError as error:
                raise ServerRejected("a certificate of its chain cannot be read") from error

    context.sslsocket_class = CheckedSocket


def _check_dates(chain: Sequence[bytes], at: datetime) -> None:
    for begin, end in map(validity_of, chain):
        if not begin <= at <= end:
            state = "has expired" if at > end else "is not valid yet"
            raise ServerRejected(f"a certificate of its chain {state} at {at:%Y-%m-%d %H:%M:%S} UTC", _EXPIRED)


def _check_pins(chain: Sequence[bytes], pins: Collection[str]) -> None:
    # An intermediate's key is no pin: an anchor that is pinned chooses its issuing CAs.
    leaf, anchor = pin_of(chain[0]), pin_of(chain[-1])
    if leaf not in pins and anchor not in pins:
        raise ServerRejected(
            f"neither its key, {leaf}, nor that of its trust anchor, {anchor}, is among the pins of this device",
            NOT_PINNED,
        )


def _verified_chain(stream: ssl.SSLSocket) -> list[bytes]:
    """DER, from the server's certificate to the trust anchor."""
    public = getattr(stream, "get_verified_chain", None)
    if public is not None:  # Python 3.13
        return list(public())
    chain: list[bytes] = [each.public_bytes(_DER) for each in stream._sslobj.get_verified_chain()]  # type: ignore[attr-defined]
    return chain


_DER = 2  # _ssl.ENCODING_DER
