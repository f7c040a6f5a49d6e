"""Topic filters that the broker holds for a device, known for as long as it may hold them.

A persistent session keeps its subscriptions over connections, and the broker pays for each in memory: a node for each
level of the filter. What counts is therefore not what one connection has asked for, but all that the device has
subscribed to since the broker last had no session of it.
"""

from collections import OrderedDict
from collections.abc import Iterator

from fleet.servers.gateway.limits import DEFAULT_LIMITS, Limits

DEVICES_MAX = 100_000


class FilterSet:
    """The filters of one device."""

    __slots__ = ("_bytes", "_filters", "_levels", "_limits")

    def __init__(self, limits: Limits = DEFAULT_LIMITS) -> None:
        self._limits = limits
        self._filters: set[str] = set()
        self._bytes = self._levels = 0

    def __iter__(self) -> Iterator[str]:
        return iter(self._filters)

    def add(self, topic_filter: str) -> bool:
        """False: there is no room for it."""
        if topic_filter in self._filters:
            return True
        size, levels = self._bytes + len(topic_filter), self._levels + topic_filter.count("/") + 1
        limits = self._limits
        if (
            len(self._filters) >= limits.filters_per_device_max
            or size > limits.filter_bytes_per_device_max
            or levels > limits.filter_levels_per_device_max
        ):
            return False
        self._filters.add(topic_filter)
        self._bytes, self._levels = size, levels
        return True

    def discard(self, topic_filter: str) -> None:
        if topic_filter in self._filters:
            self._filters.discard(topic_filter)
            self._bytes -= len(topic_filter)
            self._levels -= topic_filter.count("/") + 1

    def clear(self) -> None:
        """The broker holds nothing any more."""
        self._filters.clear()
        self._bytes = self._levels = 0


class KeptFilters:
    """By device id. The device that connected longest ago is forgotten first: it then starts at nothing again."""

    def __init__(self, limits: Limits = DEFAULT_LIMITS) -> None:
        self._limits = limits
        self._devices: OrderedDict[str, FilterSet] = OrderedDict()

    def of_device(self, device_id: str) -> FilterSet:
        found = self._devices.setdefault(device_id, FilterSet(self._limits))
        self._devices.move_to_end(device_id)
        if len(self._devices) > DEVICES_MAX:
            self._devices.popitem(last=False)
        return found
