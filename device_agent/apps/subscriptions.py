"""What programs on the device want to receive, and what the server has granted of it. No I/O, no clock."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from device_agent.apps.shares import has_share
from device_agent.errors import SubscriptionRefused
from device_agent.packets import Received, Subscribed
from device_agent.spool.saved_filters import Keep, SavedFilters
from fleet.wire.topic_filters import matches

FILTERS_MAX = 256  # of all programs together
RETURN_SECONDS_MIN = 60.0  # in which programs come back after the agent has restarted
ENDED = "it has ended before the server answered"
OnAnswer = Callable[[str], None]
"""Called once: with "" when granted, or with the reason of the refusal."""


class Server(Protocol):
    """The connection, as far as subscriptions need it."""

    @property
    def is_up(self) -> bool: ...
    def subscribe(self, topic_filter: str, qos: int) -> int: ...
    def unsubscribe(self, topic_filter: str) -> int: ...
    def acknowledge(self, packet_id: int) -> None: ...


class Holder(Protocol):
    """Who wants a filter."""

    @property
    def uid(self) -> int:
        """The user whose share of the filters it uses."""

    def refused(self, topic_filter: str, reason: str) -> None:
        """A filter that it has had is refused now: it is no longer held."""


@dataclass(slots=True)
class _Wanted:
    qos: int
    holders: list[Holder] = field(default_factory=list)
    asking: list[tuple[Holder, OnAnswer]] = field(default_factory=list)
    """Whom the SUBSCRIBE on its way serves."""
    waiting: list[tuple[Holder, OnAnswer]] = field(default_factory=list)
    """Whom the next one serves: retained messages may have come already by the one on its way."""
    packet_id: int = 0
    """Of the SUBSCRIBE on its way."""
    granted: bool = False
    keep: Keep = field(default_factory=dict)
    kept: dict[int, float] = field(default_factory=dict)
    """By user: until when it is kept though nobody holds it."""
    is_sent: bool = False
    """The session at the server may have it."""

    def is_of(self, uid: int) -> bool:
        return uid in self.kept or any(each.uid == uid for each in self.holders)


class Subscriptions:
    """One for each filter at the server, however many programs hold it.

    The session outlives this process: `saved` has what earlier ones have left in it.
    """

    def __init__(self, server: Server, saved: SavedFilters | None = None) -> None:
        self._server = server
        self._saved = saved
        self._left = saved.filters if saved is not None else {}
        """Of an earlier run, until the first connection."""
        self._wanted: dict[str, _Wanted] = {}
        self._ending: dict[str, int] = {}
        """What the session is not to have any more, by the packet id of the UNSUBSCRIBE on its way; 0: none is."""

    def __len__(self) -> int:
        return len(self._wanted)

    @property
    def granted(self) -> int:
        return sum(each.granted for each in self._wanted.values())

    def is_granted(self, topic_filter: str) -> bool:
        wanted = self._wanted.get(topic_filter)
        return wanted is not None and wanted.granted

    def wants(self, message: Received) -> bool:
        """Whether it is for a filter that is held or kept."""
        return any(message.is_for(each) for each in self._wanted)

    def match(self, topic: str) -> bool:
        """Whether a filter that is held or kept matches: the server sends a copy for it."""
        return any(matches(each, topic) for each in self._wanted)

    def hold(self, topic_filter: str, qos: int, holder: Holder, on_answer: OnAnswer, keep_seconds: float = 0.0) -> None:
        """Subscribe for `holder`. The server is asked each time: it then sends retained messages again. `keep_seconds`:
        how long a next run of the agent waits for it.

        Raises: SubscriptionRefused if there are too many, or too many of the holder's user.
        """
        wanted = self._wanted.get(topic_filter)
        if wanted is None:
            mine = sum(each.is_of(holder.uid) for each in self._wanted.values())
            if not has_share(holder.uid, FILTERS_MAX, len(self._wanted), mine):
                raise SubscriptionRefused(f"There are {len(self._wanted)} subscriptions already, {mine} of this user.")
            wanted = self._wanted[topic_filter] = _Wanted(qos)
        wanted.qos = max(wanted.qos, qos)
        if holder not in wanted.holders:
            wanted.holders.append(holder)
        wanted.waiting.append((holder, on_answer))
        wanted.keep[holder.uid] = max(keep_seconds, wanted.keep.get(holder.uid, 0.0))
        self._ask(topic_filter, wanted)

    def release(self, topic_filter: str, holder: Holder, keep_until: float = 0.0) -> None:
        """`holder` does not want it any more; without another, it is kept until then."""
        wanted = self._wanted.get(topic_filter)
        if wanted is None or holder not in wanted.holders:
            return
        wanted.holders.remove(holder)
        ended = [on_answer for each, on_answer in wanted.asking + wanted.waiting if each is holder]
        wanted.asking = [each for each in wanted.asking if each[0] is not holder]
        wanted.waiting = [each for each in wanted.waiting if each[0] is not holder]
        if keep_until:
            wanted.kept[holder.uid] = max(wanted.kept.get(holder.uid, 0.0), keep_until)
        if not wanted.holders and not wanted.kept:
            self._end(topic_filter)
        for on_answer in ended:
            on_answer(ENDED)

    def came_up(self, session_present: bool, now: float) -> None:
        """There is a connection. What its session has not, is subscribed again; what it has of an earlier run, and no
        program comes back for, is ended."""
        left, self._left = self._left, {}
        if session_present:
            for topic_filter, keep in left.items():
                wanted = self._wanted.setdefault(topic_filter, _Wanted(1, granted=True))
                wanted.is_sent, wanted.keep = True, keep | wanted.keep
                wanted.kept |= {uid: now + max(seconds, RETURN_SECONDS_MIN) for uid, seconds in keep.items()}
            self._ending = {name: self._server.unsubscribe(name) for name in self._ending}
        else:
            self._ending = {}
        for topic_filter, wanted in tuple(self._wanted.items()):
            wanted.packet_id = 0  # of an earlier connection
            wanted.waiting, wanted.asking = wanted.asking + wanted.waiting, []
            if not session_present:
                wanted.granted = wanted.is_sent = False
            if not wanted.granted or wanted.waiting:
                self._ask(topic_filter, wanted)

    def answered(self, suback: Subscribed) -> None:
        """The server has granted or refused, or ended a subscription."""
        ended = [name for name, packet_id in self._ending.items() if packet_id == suback.packet_id]
        if ended:
            del self._ending[ended[0]]
            return
        asked = [name for name, each in self._wanted.items() if each.packet_id == suback.packet_id]
        if not asked:
            return  # of an earlier connection, or ended
        topic_filter, wanted = asked[0], self._wanted[asked[0]]
        wanted.packet_id = 0
        reason = suback.refusals[0] if suback.refusals else "the answer has no reason code"
        asking, wanted.asking = wanted.asking, []
        wanted.granted = not reason
        if reason:
            asking += wanted.waiting
            del self._wanted[topic_filter]
            told = [holder for holder, _ in asking]
            for holder in wanted.holders:
                if holder not in told:
                    holder.refused(topic_filter, reason)
        elif wanted.waiting:
            self._ask(topic_filter, wanted)
        for _, on_answer in asking:
            on_answer(reason)

    def tick(self, now: float) -> None:
        """End what has been kept long enough."""
        for topic_filter, wanted in tuple(self._wanted.items()):
            if wanted.kept:
                wanted.kept = {uid: until for uid, until in wanted.kept.items() if now < until}
            if not wanted.holders and not wanted.kept:
                self._end(topic_filter)

    def _ask(self, topic_filter: str, wanted: _Wanted) -> None:
        """One SUBSCRIBE of a filter at a time: on a slow link, its answer would come after the next one has gone."""
        if self._server.is_up and not wanted.packet_id:
            self._ending.pop(topic_filter, None)
            wanted.is_sent = True
            self._save(topic_filter, wanted)
            wanted.asking, wanted.waiting = wanted.waiting, []
            wanted.packet_id = self._server.subscribe(topic_filter, wanted.qos)

    def _end(self, topic_filter: str) -> None:
        """Without a connection, the next one unsubscribes; so it does if this one breaks before the UNSUBACK."""
        if self._wanted.pop(topic_filter).is_sent:
            self._ending[topic_filter] = self._server.unsubscribe(topic_filter) if self._server.is_up else 0

    def _save(self, topic_filter: str, wanted: _Wanted) -> None:
        # Before the server has it. What has ended leaves the file with the next write: flash is worn by each.
        if self._saved is not None and not self._saved.cover(topic_filter, wanted.keep):
            sent = {name: each.keep for name, each in self._wanted.items() if each.is_sent}
            self._saved.store({name: {} for name in self._ending} | self._left | sent)
