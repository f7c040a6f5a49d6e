"""Requests for a first certificate that wait for an operator's yes or no.

A request is one key that asks for one device id; its id follows from the two, so whoever asks again is recognised.
It reserves nothing: two keys that ask for one device id are two requests, and the yes to one is a no to the other.
"""

import enum
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from fleet.domain.device import DeviceId

REASON_SIZE_MAX = 200
FACTS_SIZE_MAX = 1000  # of what a CSR says beside its key: it is for people to read, and strangers write it
ASK_AGAIN_SECONDS_MAX = 900  # a device that was approved waits at most this long for its certificate
FINGERPRINT_OCTETS = 8  # 64 bits: more than anybody can search through, and few enough to read out


class RequestState(enum.StrEnum):
    PENDING = "pending"
    APPROVED = "approved"
    """An operator has said yes; the device has not come for its certificate yet."""
    DENIED = "denied"
    ISSUED = "issued"
    """The certificate has been issued. There is no second one for this request."""


DECIDED_FROM: Mapping[RequestState, frozenset[RequestState]] = {
    RequestState.APPROVED: frozenset({RequestState.PENDING}),
    # A yes can be taken back until the device has come for it.
    RequestState.DENIED: frozenset({RequestState.PENDING, RequestState.APPROVED}),
}
"""What an operator may make of a request, and in which states."""


@dataclass(frozen=True, slots=True)
class ApprovalRequest:
    """One key that asks for one device id."""

    id: str
    """See `request_id`."""
    device_id: DeviceId
    model: str
    key_sha256: bytes
    key_type: str
    facts: str
    """Subject and SAN of the CSR in words. Nothing of it goes into the certificate but the device id."""
    address: str
    """Whence it was asked last."""
    network: str
    """What counts as one address: of an IPv6 one its /64."""
    first_seen: datetime
    last_seen: datetime
    expires_at: datetime
    """From then on it is as if nobody had asked."""
    asked: int = 1
    state: RequestState = RequestState.PENDING
    decided_by: str = ""
    decided_at: datetime | None = None
    reason: str = ""
    revision: int = 1
    """One higher with each change of state."""

    @property
    def fingerprint(self) -> str:
        return key_fingerprint(self.key_sha256)


@dataclass(frozen=True, slots=True)
class RequestFilter:
    """Requests of which everything that is given is true."""

    state: RequestState | None = None
    model: str | None = None
    device_id: str | None = None


EVERY_REQUEST = RequestFilter()


@dataclass(frozen=True, slots=True)
class WaitingLimits:
    """How many may wait, for whom strangers must not fill the disk; how long, and how soon they ask again."""

    requests_max: int = 1000
    per_model_max: int = 500
    per_address_max: int = 50
    lifetime: timedelta = timedelta(days=7)
    """Of a request; begins anew with the decision."""
    ask_again_seconds: int = 30
    """After the first time; it grows with the age of the request."""


DEFAULT_WAITING = WaitingLimits()


def request_id(device_id: str, key_sha256: bytes) -> str:
    """16 hex digits."""
    return hashlib.sha256(b"request\0" + device_id.encode() + b"\0" + key_sha256).hexdigest()[:16]


def key_fingerprint(key_sha256: bytes) -> str:
    """The beginning of a key's SHA-256, for two people to compare over the telephone: "91ab-0c2d-77de-0b12"."""
    text = key_sha256[:FINGERPRINT_OCTETS].hex()
    return "-".join(text[n : n + 4] for n in range(0, len(text), 4))


def ask_again_seconds(request: ApprovalRequest, now: datetime, first: int) -> int:
    """When to ask again (RFC 7030, 4.2.3): `first` seconds for a new request, growing with its age to 15 minutes.

    A fifth more or less, by request and moment, so that those that were switched on together do not come together.
    """
    age = max(0.0, (now - request.first_seen).total_seconds())
    seconds = min(max(first, age / 4), max(first, ASK_AGAIN_SECONDS_MAX))
    seed = hashlib.sha256(f"{request.id} {now.timestamp()}".encode()).digest()
    spread = 0.8 + 0.4 * int.from_bytes(seed[:4]) / 2**32
    return max(1, round(seconds * spread))
