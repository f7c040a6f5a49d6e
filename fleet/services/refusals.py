"""What comes again and again and changes nothing, refusals above all: one audit row a minute for each kind, with the
number of those left out.

Whoever holds nothing can be refused as often as a link carries it; each row is an fsync and stays for ever. Logs and
counters know every refusal; the audit has to know that, whence and since when.
"""

import ipaddress
from collections import OrderedDict
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from weakref import WeakKeyDictionary

from fleet.domain.changes import AuditEntry
from fleet.domain.ports import Registry

ROW_EVERY = timedelta(minutes=1)
KINDS_MAX = 4096  # remembered at once; beyond that, strangers are told apart by nothing but the code

_Kind = tuple[str, str, str, str]


@dataclass(slots=True)
class _Written:
    at: datetime
    left_out: int = 0


class Refusals:
    """What has been written of late. Strangers are one kind by their network, devices by their name."""

    def __init__(self, kinds_max: int = KINDS_MAX) -> None:
        self._kinds_max = kinds_max
        self._written: OrderedDict[_Kind, _Written] = OrderedDict()  # the longest since first

    def row(self, entry: AuditEntry) -> AuditEntry | None:
        """`entry` as it is to be written, or None when one like it was written within the last minute.

        Its detail `left_out` is the number of those that were not written since the one before it.
        """
        kind = self._kind(entry)
        known = self._written.get(kind)
        if known is not None and abs(entry.at - known.at) < ROW_EVERY:
            known.left_out += 1
            return None
        self._written[kind] = _Written(entry.at)
        self._written.move_to_end(kind)
        if known is None or not known.left_out:
            return entry
        return replace(entry, detail={**entry.detail, "left_out": str(known.left_out)})

    def _kind(self, entry: AuditEntry) -> _Kind:
        whence = network_of(entry.address) if entry.actor == "nobody" else ""
        # What is given again is told by its device: each has had to earn it first. To be refused for, any name will do.
        whence = entry.subject if entry.outcome == "ok" else whence
        kind = (entry.actor, entry.action, entry.outcome, whence)
        if kind in self._written or len(self._written) < self._kinds_max:
            return kind
        oldest, written = next(iter(self._written.items()))
        if abs(entry.at - written.at) >= ROW_EVERY:
            del self._written[oldest]
            return kind
        # All of them are fresh: a row for each newcomer is what somebody with many addresses wants.
        return (entry.actor.partition(" ")[0], entry.action, entry.outcome, "anywhere")


_OF_REGISTRY: WeakKeyDictionary[Registry, Refusals] = WeakKeyDictionary()


def refusals_of(registry: Registry) -> Refusals:
    """The one memory of what this process has written to `registry`."""
    return _OF_REGISTRY.setdefault(registry, Refusals())


def network_of(address: str) -> str:
    """An IPv4 address, or the /64 of an IPv6 one, which is what one subscriber is given."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv6Address):
        return str(parsed.ipv4_mapped or ipaddress.ip_network((parsed, 64), strict=False))
    return str(parsed)
