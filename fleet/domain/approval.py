"""Requests for a first certificate that wait for an operator's approval.

A request is one key for one device id; its id is derived from the two, so a repeated request is recognized. It reserves
nothing: two keys for one device id are two requests, and approving one denies the other.
"""

import enum
import hashlib
from collections.abc import Mapping
from datetime import datetime, timedelta

from msgspec import Struct

from fleet.domain.device import DeviceId

FACTS_SIZE_MAX = 1000  # of the CSR's subject and SAN, for people to read; untrusted text
UNSEEN = timedelta(hours=1)  # a client that still waits has asked again by then, four times over
ASK_AGAIN_SECONDS_MAX = 900  # an approved device waits at most this long for its certificate
FINGERPRINT_OCTETS = 8  # 64 bits: too many to search through, few enough to read out


class RequestState(enum.StrEnum):
    PENDING = "pending"
    APPROVED = "approved"
    """Approved by an operator; the device has not collected its certificate yet."""
    DENIED = "denied"
    ISSUED = "issued"
    """The certificate has been issued; there is no second one for this request."""


DECIDED_FROM: Mapping[RequestState, frozenset[RequestState]] = {
    RequestState.APPROVED: frozenset({RequestState.PENDING}),
    # An approval can be withdrawn until the device has collected the certificate.
    RequestState.DENIED: frozenset({RequestState.PENDING, RequestState.APPROVED}),
}
"""States from which an operator may approve or deny a request."""


class ApprovalRequest(Struct, frozen=True):
    """A request of one key for one device id."""

    id: str
    """See `request_id`."""
    device_id: DeviceId
    model: str
    key_sha256: bytes
    key_type: str
    facts: str
    """Subject and SAN of the CSR as text. Only the device id goes into the certificate."""
    address: str
    """Source address of the last request."""
    network: str
    """What counts as one address: the /64 of an IPv6 address."""
    first_seen: datetime
    last_seen: datetime
    expires_at: datetime
    """From then on it is treated as if it did not exist."""
    asked: int = 1
    state: RequestState = RequestState.PENDING
    decided_by: str = ""
    decided_at: datetime | None = None
    reason: str = ""
    revision: int = 1
    """One higher with each change of state."""
    block: str = ""
    """Whose it is where there is no room for all: the /24 of an IPv4 address, the /48 of an IPv6 one."""
    region: str = ""
    """And beyond that, since a provider has many such: the /16 of an IPv4 address, the /32 of an IPv6 one."""

    @property
    def fingerprint(self) -> str:
        return key_fingerprint(self.key_sha256)


class RequestFilter(Struct, frozen=True):
    """Requests that match every given field."""

    state: RequestState | None = None
    model: str | None = None
    device_id: str | None = None


EVERY_REQUEST = RequestFilter()


class WaitingLimits(Struct, frozen=True):
    """How many requests may wait, since unauthenticated clients must not fill the disk; how long, and their retry
    interval. Requests with a key that the manifest lists for their device are not counted.
    """

    requests_max: int = 1000
    per_model_max: int = 500
    per_address_max: int = 50
    lifetime: timedelta = timedelta(days=7)
    """Of a request; starts again with the decision."""
    ask_again_seconds: int = 30
    """After the first request; grows with its age."""
    stranger_lifetime: timedelta = timedelta(days=1)
    """Of a request for a device that is not registered, from the last time that it was sent; `lifetime` at most."""


DEFAULT_WAITING = WaitingLimits()


def request_id(device_id: str, key_sha256: bytes) -> str:
    """16 hex digits."""
    return hashlib.sha256(b"request\0" + device_id.encode() + b"\0" + key_sha256).hexdigest()[:16]


def key_fingerprint(key_sha256: bytes) -> str:
    """The first 64 bits of a key's SHA-256, for two people to compare by telephone: "91ab-0c2d-77de-0b12"."""
    text = key_sha256[:FINGERPRINT_OCTETS].hex()
    return "-".join(text[n : n + 4] for n in range(0, len(text), 4))


def ask_again_seconds(request: ApprovalRequest, now: datetime, first: int) -> int:
    """Retry-After in seconds (RFC 7030, 4.2.3): `first` for a new request, growing with its age to 15 minutes.

    Jitter of a fifth, by request and time, so that devices that were switched on together do not retry together.
    """
    age = max(0.0, (now - request.first_seen).total_seconds())
    seconds = min(max(first, age / 4), max(first, ASK_AGAIN_SECONDS_MAX))
    seed = hashlib.sha256(f"{request.id} {now.timestamp()}".encode()).digest()
    spread = 0.8 + 0.4 * int.from_bytes(seed[:4]) / 2**32
    return max(1, round(seconds * spread))
