"""Subscriptions of one session: removes refused filters from SUBSCRIBE, and adds their codes to the SUBACK.

A refused filter is never forwarded. When some filters of a packet are allowed, the broker answers for those, and the
refusals are inserted into its SUBACK, in the order of the request.
"""

from dataclasses import dataclass, replace

from fleet.domain.topic_policy import TopicPolicy
from fleet.servers.gateway.close_reasons import QUOTA, CloseSession
from fleet.servers.gateway.kept_filters import FilterSet
from fleet.servers.gateway.limits import DEFAULT_LIMITS, Limits
from fleet.servers.gateway.reason_strings import ReasonStrings, of_filters
from fleet.wire.mqtt.codes import SUBACK_FAILURE_V311, V5, Reason
from fleet.wire.mqtt.properties import Property, reason_string, value_of
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

PENDING_MAX = 64  # reduced SUBSCRIBEs that the broker has not acknowledged


@dataclass(frozen=True, slots=True)
class Verdict:
    """Outcome of one SUBSCRIBE."""

    forward: bytes | None = None
    """For the broker: None for the packet itself, b"" for nothing."""
    answer: bytes | None = None
    """For the device: the SUBACK when nothing is forwarded."""
    refused: tuple[str, ...] = ()


class Subscriptions:
    """Sans-I/O. Filters are kept from the SUBSCRIBE on: possibly more than the broker grants, never fewer."""

    __slots__ = ("_pending", "_per_packet_max", "_version", "filters", "reasons")

    def __init__(self, version: int, limits: Limits = DEFAULT_LIMITS) -> None:
        self._version = version
        self._per_packet_max = limits.filters_per_packet_max
        self.filters = FilterSet(limits)
        """What the broker may hold for the device."""
        self.reasons = ReasonStrings()
        self._pending: dict[int, tuple[int, ...]] = {}  # packet id -> a code for each filter, 0 for the broker's

    def filter_subscribe(self, body: bytes, policy: TopicPolicy) -> Verdict:
        """Check each filter of a SUBSCRIBE. Raises: WireError; CloseSession: too many await their SUBACK."""
        asked = decode_subscribe(body, self._version, self._per_packet_max)
        codes = tuple(self._code(subscription, policy) for subscription in asked.subscriptions)
        # A new SUBSCRIBE replaces an unacknowledged one of the same packet identifier.
        self._pending.pop(asked.packet_id, None)
        kept = tuple(s for s, code in zip(asked.subscriptions, codes, strict=True) if not code)
        refused = tuple(s.topic_filter for s, code in zip(asked.subscriptions, codes, strict=True) if code)
        if not refused:
            return Verdict()
        if not kept:
            return Verdict(b"", self._suback(Suback(asked.packet_id, codes), codes), refused)
        if len(self._pending) >= PENDING_MAX:
            raise CloseSession(QUOTA)
        self._pending[asked.packet_id] = codes
        return Verdict(encode_subscribe(replace(asked, subscriptions=kept), self._version), None, refused)

    def complete_suback(self, body: bytes) -> bytes | None:
        """The SUBACK for the device in place of the broker's; None: that one itself. Raises: WireError."""
        if not self._pending:
            return None
        suback = decode_suback(body, self._version)
        codes = self._pending.pop(suback.packet_id, None)
        if codes is None:
            return None
        granted = iter(suback.codes)
        whole = tuple(code or next(granted, Reason.UNSPECIFIED) for code in codes)
        return self._suback(replace(suback, codes=whole), codes)

    def _suback(self, suback: Suback, codes: tuple[int, ...]) -> bytes:
        """`suback` with a Reason String for the refusals of ours among `codes`, unless the broker has put one."""

        def encode(text: str) -> bytes:
            properties = (*suback.properties, *reason_string(text))
            return encode_suback(replace(suback, properties=properties), self._version)

        has_one = value_of(suback.properties, Property.REASON_STRING) is not None
        return self.reasons.answer(encode, "" if has_one else of_filters(codes))

    def unsubscribe(self, body: bytes) -> None:
        """Forget the filters of an UNSUBSCRIBE. Raises: WireError."""
        for topic_filter in decode_unsubscribe(body, self._version, self._per_packet_max).filters:
            self.filters.discard(topic_filter)

    def forget_all(self) -> None:
        """The broker has begun a session that holds none."""
        self.filters.clear()

    def allowed_by(self, policy: TopicPolicy) -> bool:
        """Whether `policy` allows every filter of the session."""
        return all(map(policy.may_subscribe, self.filters))

    def _code(self, subscription: Subscription, policy: TopicPolicy) -> int:
        """0: forwarded. Otherwise the reason code of the refusal (3.9.3)."""
        topic_filter = subscription.topic_filter
        if not is_topic_filter(topic_filter):
            reason = Reason.TOPIC_FILTER_INVALID
        elif not policy.may_subscribe(topic_filter):
            reason = Reason.NOT_AUTHORIZED
        elif not self.filters.add(topic_filter):
            reason = Reason.QUOTA_EXCEEDED
        else:
            return 0
        return reason if self._version == V5 else SUBACK_FAILURE_V311
