"""Filter expressions for requests that wait for approval, in the language of device filters.

    model=cam2 and address=198.51.100.0/24 and expires<12h

Keys are `model`, `state`, `device`, `address` (one, or a network) and `expires`. Without `state`, those that wait.
"""

import ipaddress
from datetime import datetime

from msgspec import Struct

from fleet.domain.approval import RequestFilter, RequestState
from fleet.domain.device import device_id, plain_name
from fleet.domain.device_filter import FilterReader, state_named
from fleet.domain.errors import Invalid

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class RequestSelection(Struct, frozen=True):
    """Requests that match every given field."""

    where: RequestFilter
    address: Network | None = None
    expires_before: datetime | None = None

    def takes(self, address: str, expires_at: datetime) -> bool:
        """Whether a request that matches `where` matches the rest."""
        if self.expires_before is not None and expires_at >= self.expires_before:
            return False
        return self.address is None or _is_within(address, self.address)


def parse_request_filter(text: str, now: datetime) -> RequestSelection:
    """The selection in `text`; a duration after `expires<` is relative to `now`.

    Raises: Invalid (`bad-filter`): with the position, from 1, and what was expected there.
    """
    given = _RequestTerms(text, now).read()
    where = RequestFilter(given.get("state", RequestState.PENDING), given.get("model"), given.get("device"))
    return RequestSelection(where, given.get("address"), given.get("expires"))


class _RequestTerms(FilterReader):
    KEYS = ("model", "state", "device", "address", "expires")
    EXAMPLE = "model=cam2 and address=198.51.100.0/24"

    def meaning(self, key: str, value: str) -> str | RequestState | datetime | Network:
        match key:
            case "expires":
                return self.time(value)
            case "state":
                return state_named(value, RequestState)
            case "address":
                return _network(value)
            case "device":
                return device_id(value)
            case _:
                return plain_name(value, key)


def _network(text: str) -> Network:
    try:
        return ipaddress.ip_network(text)
    except ValueError:
        raise Invalid(
            "bad-filter", f"{text[:80]!r} is not an address or a network.", "Write 192.0.2.1 or 2001:db8::/32."
        ) from None


def _is_within(address: str, network: Network) -> bool:
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(parsed, ipaddress.IPv6Address) and network.version == 4:
        return parsed.ipv4_mapped is not None and parsed.ipv4_mapped in network
    return parsed in network
