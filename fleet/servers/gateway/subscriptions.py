"""What one session has subscribed to: SUBSCRIBE packets pared down to what the policy allows, SUBACKs made whole again.

A refused filter is never forwarded. When some filters of a packet are allowed, the broker answers for those, and
its SUBACK gets the refusals put back in their places before the device sees it.
"""

from dataclasses import dataclass, replace

from fleet.domain.topic_policy import TopicPolicy
from fleet.servers.gateway.close_reasons import QUOTA, CloseSession
from fleet.wire.mqtt.codes import SUBACK_FAILURE_V311, V5, Reason
from fleet.wire.mqtt.subscribe import (
    Suback,
    Subscription,
    decode_suback,
    decode_subscribe,
    decode_unsubscribe,
    encode_suback,
    encode_subscribe,
)
from fleet.wire.mqtt.topics import is_topic_filter

FILTERS_MAX = 1_000  # remembered for a session: each is asked about again when the policy changes
FILTER_BYTES_MAX = 65_536  # of all of them together
PENDING_MAX = 64  # pared-down SUBSCRIBEs that the broker has not answered


@dataclass(frozen=True, slots=True)
class Ruling:
    """What becomes of one SUBSCRIBE."""

    forward: bytes | None = None
    """To the broker: None for the packet itself, b"" for nothing."""
    answer: bytes | None = None
    """To the device, at once."""
    refused: tuple[str, ...] = ()


class Subscriptions:
    """Sans-IO. Filters are remembered when they are asked for: more than the broker grants, never less."""

    __slots__ = ("_bytes", "_filters", "_pending", "_version")

    def __init__(self, version: int) -> None:
        self._version = version
        self._filters: set[str] = set()
        self._bytes = 0
        self._pending: dict[int, tuple[int, ...]] = {}  # packet id -> a code for each filter, 0 where the broker's goes

    def ask(self, body: bytes, policy: TopicPolicy) -> Ruling:
        """Rule on a SUBSCRIBE.

        Raises: WireError; CloseSession: too many wait for their SUBACK.
        """
        asked = decode_subscribe(body, self._version)
        codes = tuple(self._code(subscription, policy) for subscription in asked.subscriptions)
        # A new SUBSCRIBE with this packet identifier ends the old one's wait.
        self._pending.pop(asked.packet_id, None)
        kept = tuple(s for s, code in zip(asked.subscriptions, codes, strict=True) if not code)
        refused = tuple(s.topic_filter for s, code in zip(asked.subscriptions, codes, strict=True) if code)
        if not refused:
            return Ruling()
        if not kept:
            return Ruling(b"", encode_suback(Suback(asked.packet_id, codes), self._version), refused)
        if len(self._pending) >= PENDING_MAX:
            raise CloseSession(QUOTA)
        self._pending[asked.packet_id] = codes
        return Ruling(encode_subscribe(replace(asked, subscriptions=kept), self._version), None, refused)

    def answered(self, body: bytes) -> bytes | None:
        """The broker's SUBACK: what the device gets instead; None: itself. Raises: WireError."""
        if not self._pending:
            return None
        suback = decode_suback(body, self._version)
        codes = self._pending.pop(suback.packet_id, None)
        if codes is None:
            return None
        granted = iter(suback.codes)
        whole = tuple(code or next(granted, Reason.UNSPECIFIED) for code in codes)
        return encode_suback(replace(suback, codes=whole), self._version)

    def left(self, body: bytes) -> None:
        """An UNSUBSCRIBE has gone to the broker. Raises: WireError."""
        for topic_filter in decode_unsubscribe(body, self._version).filters:
            if topic_filter in self._filters:
                self._filters.discard(topic_filter)
                self._bytes -= len(topic_filter)

    def fit(self, policy: TopicPolicy) -> bool:
        """Whether `policy` allows every filter that is held."""
        return all(map(policy.may_subscribe, self._filters))

    def _code(self, subscription: Subscription, policy: TopicPolicy) -> int:
        """0: goes to the broker. Otherwise the refusal's code in SUBACK (3.9.3)."""
        topic_filter = subscription.topic_filter
        if not is_topic_filter(topic_filter):
            reason = Reason.TOPIC_FILTER_INVALID
        elif not policy.may_subscribe(topic_filter):
            reason = Reason.NOT_AUTHORIZED
        elif not self._remember(topic_filter):
            reason = Reason.QUOTA_EXCEEDED
        else:
            return 0
        return reason if self._version == V5 else SUBACK_FAILURE_V311

    def _remember(self, topic_filter: str) -> bool:
        """False: it would be more than we may hold."""
        if topic_filter in self._filters:
            return True
        if len(self._filters) >= FILTERS_MAX or self._bytes + len(topic_filter) > FILTER_BYTES_MAX:
            return False
        self._filters.add(topic_filter)
        self._bytes += len(topic_filter)
        return True
