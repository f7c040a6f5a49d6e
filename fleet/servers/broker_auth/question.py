"""What a question of a broker is, and the answer, whichever broker asks."""

import ipaddress
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from fleet.domain.errors import FleetError
from fleet.servers.delegated_auth import AuthContext
from fleet.servers.http import Exchange
from fleet.servers.http_response import Response
from fleet.servers.refusals import HttpRefused
from fleet.services.admission import CONNECT, Admission, device_named
from fleet.services.refusals import audit_refusal

BODY_SIZE_MAX = 128 * 1024  # a topic of 64 KB, and a certificate beside it

NAMES_MAX = 8  # of members, in a message
NAME_SIZE_MAX = 40

HEADERS = {"Cache-Control": "no-store"}


def address_of(text: str) -> str:
    """The client's address that the broker gives, for log and audit, IPv4-mapped ones as IPv4; "-": it gives none."""
    try:
        address = ipaddress.ip_address(text)
        return str((address.ipv4_mapped if address.version == 6 else None) or address)
    except ValueError:
        return "-"


@dataclass(frozen=True, slots=True)
class Question:
    """One question."""

    context: AuthContext
    exchange: Exchange
    members: Mapping[str, str]

    def must_have(self, needed: frozenset[str], optional: frozenset[str] = frozenset()) -> None:
        """Raises: HttpRefused (`bad-request`): a member is missing, or there is one that we do not know."""
        missing, unknown = needed - self.members.keys(), self.members.keys() - needed - optional
        if missing or unknown:
            names = ", ".join(name[:NAME_SIZE_MAX] for name in sorted(missing or unknown)[:NAMES_MAX])
            what = f"lacks {names}" if missing else f"has members that are not known: {names}"
            self.exchange.reason = f"The question {what}."
            raise HttpRefused(400, "bad-request", f"{self.exchange.reason} See fleet/servers/broker_auth.")

    async def refused(self, name: str, refusal: FleetError) -> FleetError:
        """`refusal`, of a CONNECT of who goes by `name`, when it is audited: no admission does that."""
        context, subject = self.context, device_named(name)
        await audit_refusal(context.registry, self.exchange.peer, context.clock(), CONNECT, subject, refusal)
        return refusal

    def note(self, admission: Admission) -> None:
        """Name the device in the log line."""
        self.exchange.holder, self.exchange.serial = admission.device.id, admission.credential.serial


@dataclass(frozen=True, slots=True)
class Dialect:
    """How one kind of broker asks, and what it takes for an answer."""

    media_type: str
    """Of its questions."""
    read: Callable[[bytes], Mapping[str, str]]
    """Body -> members. Raises: WireError."""
    questions: Mapping[str, Callable[[Question], Awaitable[Response]]]
    """By the last part of the path. Raises: FleetError: what is asked for is denied."""
    denial: Callable[[Mapping[str, str]], Response]
    """With these headers."""
