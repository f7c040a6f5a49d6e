"""Messages from the fleet, handed to the programs that want them. No I/O; time is passed in.

A message of QoS 1 is acknowledged to the server once one program has taken it. Until then it is in the inbox. A program
that ends before it has taken a message leaves it to the others, and to its own next start.
"""

from collections import Counter, deque
from collections.abc import Callable
from typing import Protocol

from device_agent.apps.subscriptions import Server, Subscriptions
from device_agent.config.topics import TOPIC_SIZE_MAX
from device_agent.packets import Received, Subscribed
from device_agent.spool.inbox import Inbox, Incoming
from device_agent.spool.outbox import PAYLOAD_SIZE_MAX
from device_agent.spool.saved_filters import SavedFilters

UNACKNOWLEDGED_MAX = 16  # at the server; mosquitto sends 20 before it waits for the first acknowledgement
UNACKNOWLEDGED_SECONDS_MAX = 10.0  # then one program that hangs keeps messages from no other
OUTSTANDING_MAX = 32  # messages sent to one program that it has not taken yet
QUEUED_SIZE_MAX = 2 * 1024 * 1024  # bytes for all programs together
QUEUED_MAX = 1000  # messages for one program
EXTRAS_SIZE_MAX = 4096  # characters and bytes of properties of MQTT 5
ACKNOWLEDGED_KEPT = 64  # packet ids: an acknowledgement may be lost when the connection is replaced


class Program(Protocol):
    """A program on the device: a client of the control socket."""

    @property
    def uid(self) -> int: ...
    @property
    def has_room(self) -> bool: ...
    def deliver(self, incoming: Incoming) -> None: ...
    def refused(self, topic_filter: str, reason: str) -> None: ...
    def too_slow(self) -> None:
        """Its user's programs hold the most of what is queued, and it the most of them: it is to be closed."""


class _Receiver:
    """One program: the filters that it holds, and what is on its way to it."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.uid = program.uid
        self.keep_seconds: dict[str, float] = {}
        self.queue: deque[Incoming] = deque()
        self.outstanding: dict[int, Incoming] = {}
        self.size = 0

    def wants(self, message: Received) -> bool:
        return any(message.is_for(each) for each in self.keep_seconds)

    def put(self, incoming: Incoming) -> None:
        if incoming.message.qos == 0 and len(self.queue) >= QUEUED_MAX:
            return  # at most once
        self.queue.append(incoming)
        self.size += incoming.size

    def pump(self) -> None:
        while self.queue and len(self.outstanding) < OUTSTANDING_MAX and self.program.has_room:
            incoming = self.queue.popleft()
            if incoming.message.qos:
                self.outstanding[incoming.number] = incoming
            else:
                self.size -= incoming.size
            self.program.deliver(incoming)

    def has(self, incoming: Incoming) -> bool:
        return incoming.number in self.outstanding or incoming in self.queue

    def take(self, number: int) -> None:
        incoming = self.outstanding.pop(number, None)
        if incoming is not None:
            self.size -= incoming.size

    def refused(self, topic_filter: str, reason: str) -> None:
        self.keep_seconds.pop(topic_filter, None)
        self.program.refused(topic_filter, reason)


class Inbound:
    """`monotonic` is read when something arrives or ends."""

    def __init__(
        self,
        server: Server,
        monotonic: Callable[[], float],
        inbox: Inbox | None = None,
        saved: SavedFilters | None = None,
    ) -> None:
        self._server = server
        self._monotonic = monotonic
        self.inbox = Inbox() if inbox is None else inbox
        self.inbox.on_stored = self._acknowledge
        self.subscriptions = Subscriptions(server, saved)
        self._receivers: dict[Program, _Receiver] = {}
        self._internal: dict[str, Callable[[Received], None]] = {}
        self._unacknowledged: dict[int, Incoming] = {}
        """By packet id, of this connection."""
        self._earlier: dict[int, tuple[int, Incoming | None]] = {}
        """By packet id, of connections before: fingerprint, and message unless it is taken. The server sends them
        again, under the same packet ids ([MQTT-4.4.0-1])."""
        self._acknowledged: deque[tuple[int, int]] = deque(maxlen=ACKNOWLEDGED_KEPT)

    # Programs

    def subscribe(
        self, program: Program, topic_filter: str, qos: int, keep_seconds: float, on_answer: Callable[[str], None]
    ) -> None:
        """Deliver to `program` what the filter matches, what is held already first. `keep_seconds`: how long the
        subscription and its messages outlive the program's connection.

        Raises: SubscriptionRefused if there are too many.
        """
        receiver = self._receivers.get(program) or _Receiver(program)

        def answered(reason: str) -> None:
            if reason:
                receiver.keep_seconds.pop(topic_filter, None)
            on_answer(reason)

        self.subscriptions.hold(topic_filter, qos, receiver, answered, keep_seconds)
        self._receivers[program] = receiver
        receiver.keep_seconds[topic_filter] = keep_seconds
        for incoming in self.inbox.matching(topic_filter):
            if not any(each.has(incoming) for each in self._receivers.values()):
                receiver.put(incoming)
        receiver.pump()

    def unsubscribe(self, program: Program, topic_filter: str) -> bool:
        """Whether it held the filter."""
        receiver = self._receivers.get(program)
        if receiver is None or topic_filter not in receiver.keep_seconds:
            return False
        del receiver.keep_seconds[topic_filter]
        self.subscriptions.release(topic_filter, receiver)
        return True

    @property
    def programs(self) -> int:
        """How many have subscriptions, all of them granted."""
        held = [each.keep_seconds for each in self._receivers.values()]
        return sum(bool(filters) and all(map(self.subscriptions.is_granted, filters)) for filters in held)

    def filters_of(self, program: Program) -> int:
        receiver = self._receivers.get(program)
        return len(receiver.keep_seconds) if receiver else 0

    def take(self, program: Program, number: int) -> None:
        """`program` has taken the message; unknown ones are ignored: another may have taken it before."""
        receiver = self._receivers.get(program)
        if receiver is None:
            return
        receiver.take(number)
        incoming = self.inbox.get(number)
        if incoming is not None and receiver.wants(incoming.message):
            incoming.taken = True
            self.inbox.remove(incoming)
            self._acknowledge(incoming)
        receiver.pump()

    def gone(self, program: Program) -> None:
        """The program's connection has ended."""
        receiver = self._receivers.pop(program, None)
        if receiver is None:
            return
        for topic_filter, keep_seconds in tuple(receiver.keep_seconds.items()):
            until = self._monotonic() + keep_seconds if keep_seconds else 0.0
            self.subscriptions.release(topic_filter, receiver, until)

    def hear(self, topic_filter: str, handler: Callable[[Received], None]) -> None:
        """Give the agent itself what the filter matches; programs get it, too, if they want it. The caller subscribes,
        with `subscriptions.hold`."""
        self._internal[topic_filter] = handler

    # The connection

    def came_up(self, session_present: bool) -> None:
        """There is a connection, with the session of before or a new one."""
        self._earlier |= {packet_id: (fingerprint, None) for packet_id, fingerprint in self._acknowledged}
        self._earlier |= {number: (_fingerprint(each.message), each) for number, each in self._unacknowledged.items()}
        if not session_present:
            self._earlier = {}
        self._unacknowledged = {}
        self._acknowledged.clear()
        self.subscriptions.came_up(session_present, self._monotonic())

    def subscribed(self, suback: Subscribed) -> None:
        """The server has answered a SUBSCRIBE."""
        self.subscriptions.answered(suback)

    def received(self, message: Received) -> None:
        """A message from the server."""
        if message.qos and self._is_known(message):
            return
        if _is_too_large(message):
            self.inbox.dropped += 1
            if message.qos:
                self._server.acknowledge(message.packet_id)
            return
        packet_id = message.packet_id if message.qos else 0
        incoming = Incoming(self.inbox.new_number(), message, self._monotonic(), packet_id)
        if incoming.packet_id:
            self._unacknowledged[incoming.packet_id] = incoming
        for topic_filter, handler in tuple(self._internal.items()):
            if message.is_for(topic_filter):
                handler(message)
                incoming.taken = True
        receivers = [each for each in self._receivers.values() if each.wants(message)]
        for receiver in receivers:
            receiver.put(incoming)
        if message.qos and not incoming.taken:
            for dropped in self.inbox.add(incoming):
                self._acknowledge(dropped)
        if incoming.taken:
            self._acknowledge(incoming)
        for receiver in receivers:
            receiver.pump()
        self._bound_queues()

    def tick(self) -> None:
        """At every turn of the loop: deliver what there is room for, and end what has waited long enough."""
        now = self._monotonic()
        self.subscriptions.tick(now)
        for receiver in tuple(self._receivers.values()):
            receiver.pump()
        self._drop_unwanted(now)
        if len(self._unacknowledged) >= UNACKNOWLEDGED_MAX:
            for incoming in tuple(self._unacknowledged.values()):
                waited = now - incoming.arrived_at >= UNACKNOWLEDGED_SECONDS_MAX
                if waited or not any(each.has(incoming) for each in self._receivers.values()):
                    self._acknowledge(incoming)

    def _drop_unwanted(self, now: float) -> None:
        first = min(Inbox.unwanted_seconds_max, self.inbox.unwanted_seconds_max)
        for incoming in self.inbox:
            waited, message = now - incoming.arrived_at, incoming.message
            if waited < first:
                break  # so have all after it
            if self.subscriptions.wants(message):
                continue
            # A copy for a filter of an earlier run, that nobody has taken up: who wants its topic has had another copy.
            spare = bool(message.identifiers) and self.subscriptions.match(message.topic)
            if spare or waited >= self.inbox.unwanted_seconds_max:
                self._acknowledge(self.inbox.drop(incoming))

    def _is_known(self, message: Received) -> bool:
        fingerprint, incoming = self._earlier.pop(message.packet_id, (0, None))
        if not message.dup or fingerprint != _fingerprint(message):
            return False
        if incoming is None or incoming.taken or self.inbox.get(incoming.number) is None:
            self._server.acknowledge(message.packet_id)
        else:
            incoming.packet_id = message.packet_id
            self._unacknowledged[message.packet_id] = incoming
        return True

    def _acknowledge(self, incoming: Incoming) -> None:
        """Tell the server, if it waits for this and there is a connection."""
        packet_id = incoming.packet_id
        if self._server.is_up and self._unacknowledged.get(packet_id) is incoming:
            del self._unacknowledged[packet_id]
            incoming.packet_id = 0
            self._server.acknowledge(packet_id)
            self._acknowledged.append((packet_id, _fingerprint(incoming.message)))

    def _bound_queues(self) -> None:
        while sum(each.size for each in self._receivers.values()) > QUEUED_SIZE_MAX:
            sizes: Counter[int] = Counter()
            for each in self._receivers.values():
                sizes[each.uid] += each.size
            self._close(max(self._receivers.values(), key=lambda each: (sizes[each.uid], each.size)))
        for receiver in tuple(self._receivers.values()):
            if len(receiver.queue) > QUEUED_MAX:
                self._close(receiver)

    def _close(self, receiver: _Receiver) -> None:
        receiver.program.too_slow()
        self.gone(receiver.program)


def _is_too_large(message: Received) -> bool:
    """Whether it is larger than what a program may send: a line of the control socket has a limit."""
    extras = message.extras
    pairs = sum(len(name) + len(value) for name, value in extras.user)
    rest = len(extras.response_topic) + len(extras.correlation) + pairs
    return len(message.payload) > PAYLOAD_SIZE_MAX or len(message.topic) > TOPIC_SIZE_MAX or rest > EXTRAS_SIZE_MAX


def _fingerprint(message: Received) -> int:
    return hash((message.topic, message.payload))
