"""Subscriptions of one session: removes refused filters from SUBSCRIBE, and adds their codes to the SUBACK.

A refused filter is never forwarded, and a QoS above the policy's is lowered to it. When some filters of a packet are
allowed, the broker answers for those, and the refusals are inserted into its SUBACK, in the order of the request. When
none is, the SUBACK is ours, and follows those of the SUBSCRIBEs before it: a client need not wait for one answer before
it sends the next packet.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from fleet.domain.topic_policy import Refusal, TopicPolicy
from fleet.servers.gateway.close_reasons import QUOTA, TOO_MANY_FILTERS, CloseSession
from fleet.servers.gateway.limits.kept_filters import FilterSet
from fleet.servers.gateway.relay.outcome import Fate, Outcome
from fleet.servers.gateway.relay.reason_strings import ReasonStrings, of_filters
from fleet.wire.errors import Malformed, TooLarge
from fleet.wire.mqtt.acks import packet_id_of
from fleet.wire.mqtt.codes import SUBACK_FAILURE_V311, V5, Reason, is_refusal
from fleet.wire.mqtt.fields import encode_packet, is_plain
from fleet.wire.mqtt.properties import Property, reason_string, value_of
from fleet.wire.mqtt.subscribe import (
    Suback,
    Subscribe,
    Subscription,
    decode_suback,
    decode_subscribe,
    decode_unsubscribe,
    encode_suback,
    encode_subscribe,
)
from fleet.wire.mqtt.topics import is_topic_filter

AWAITED_BYTES_MAX = 262_144  # of refusals that await the broker's answers: 2,000 SUBSCRIBEs with a refused filter each
REPLAYED_MAX = 20_000  # retained messages of the device that SUBSCRIBEs may ask for that the broker has not answered
ENTRY_BYTES = 128  # of memory for one of them, besides a byte for each of its filters


_REASONS: dict[Refusal, int] = {
    "": 0,
    "topic": Reason.NOT_AUTHORIZED,
    "shared": Reason.SHARED_SUBSCRIPTIONS_NOT_SUPPORTED,
    "dot": Reason.IMPLEMENTATION_SPECIFIC,
}
_RULES: dict[int, str] = {_REASONS[each]: each for each in ("shared", "dot")}


@dataclass(frozen=True, slots=True)
class Verdict:
    """Outcome of one SUBSCRIBE."""

    forward: Outcome = Fate.FORWARDED
    """For the broker."""
    answer: bytes | None = None
    """For the device, at once: the SUBACK when nothing is forwarded, and the broker has answered all before it."""
    refused: tuple[tuple[str, str], ...] = ()
    """Filters that the policy does not allow, and malformed ones, each with the rule that refuses it, or ""."""
    over_quota: tuple[str, ...] = ()
    """Filters beyond what the broker may hold for the device."""


class Subscriptions:
    """Filters are kept from the SUBSCRIBE to the UNSUBACK: possibly more than the broker holds, never fewer."""

    __slots__ = (
        "_acknowledged", "_awaited_bytes", "_forwarded", "_own", "_pending", "_per_packet_max", "_reason_strings",
        "_retained", "_version", "_wild", "filters",
    )  # fmt: skip

    def __init__(
        self,
        version: int,
        per_packet_max: int,
        filters: FilterSet,
        reasons: ReasonStrings,
        retained: Callable[[], int] | None = None,
    ) -> None:
        """`retained`: how many messages of the device the broker retains; None: that is not known."""
        self._version = version
        self._retained = retained
        self._per_packet_max = per_packet_max
        self.filters = filters
        """What the broker may hold for the device."""
        self._reason_strings = reasons
        self._forwarded = self._acknowledged = 0  # SUBSCRIBEs, whole and reduced
        self._pending: dict[int, bytes] = {}  # of reduced ones: packet id -> a code for each filter, 0 for the broker's
        self._own: list[tuple[int, int, bytes]] = []  # refused: the number of those before it, packet id, codes
        self._awaited_bytes = 0  # in both
        self._wild = 0  # filters with wildcards since the broker had last answered all

    def decode_subscribe(self, body: bytes) -> Subscribe:
        """Raises: WireError; CloseSession: too many filters."""
        try:
            return decode_subscribe(body, self._version, self._per_packet_max)
        except TooLarge as error:
            raise CloseSession(TOO_MANY_FILTERS) from error

    def filter_subscribe(self, asked: Subscribe, policy: TopicPolicy) -> Verdict:
        """Check each filter of a SUBSCRIBE. Raises: CloseSession: too many await SUBACK."""
        reasons = self._reasons(asked.subscriptions, policy)
        codes = reasons if self._version == V5 else bytes(reason and SUBACK_FAILURE_V311 for reason in reasons)
        # A new SUBSCRIBE replaces an unacknowledged one of the same packet identifier.
        self._forget(self._pending.pop(asked.packet_id, None))
        kept = tuple(s for s, code in zip(asked.subscriptions, codes, strict=True) if not code)
        granted = tuple(_lowered(each, policy) for each in kept)
        if len(kept) == len(codes):
            self._forwarded += 1
            if granted == kept:
                return Verdict()
            return Verdict(encode_subscribe(replace(asked, subscriptions=granted), self._version))
        judged = [(s.topic_filter, reason) for s, reason in zip(asked.subscriptions, reasons, strict=True) if reason]
        over_quota = tuple(each for each, reason in judged if reason == Reason.QUOTA_EXCEEDED)
        refused = tuple((each, _RULES.get(reason, "")) for each, reason in judged if reason != Reason.QUOTA_EXCEEDED)
        if not kept:
            if self._acknowledged == self._forwarded:
                return Verdict(Fate.DROPPED, self._refusal(asked.packet_id, codes), refused, over_quota)
            self._remember(codes)
            self._own.append((self._forwarded, asked.packet_id, codes))
            return Verdict(Fate.DROPPED, None, refused, over_quota)
        self._remember(codes)
        self._pending[asked.packet_id] = codes
        self._forwarded += 1
        forward = encode_subscribe(replace(asked, subscriptions=granted), self._version)
        return Verdict(forward, None, refused, over_quota)

    def complete_suback(self, first: int, body: bytes) -> Outcome:
        """What the device gets of the broker's SUBACK, our own answers behind it.

        Raises: WireError.
        """
        packet = self._completed(body) if self._pending else Fate.FORWARDED
        self._acknowledged = min(self._acknowledged + 1, self._forwarded)
        if self._acknowledged == self._forwarded:
            self._wild = 0
        if not self._own or self._own[0][0] > self._acknowledged:
            return packet
        packets = [encode_packet(first, body) if packet is Fate.FORWARDED else packet]
        while self._own and self._own[0][0] <= self._acknowledged:
            _, packet_id, codes = self._own.pop(0)
            self._forget(codes)
            packets.append(self._refusal(packet_id, codes))
        return b"".join(packets)

    def _completed(self, body: bytes) -> bytes | Literal[Fate.FORWARDED]:
        suback = decode_suback(body, self._version)
        codes = self._pending.pop(suback.packet_id, None)
        if codes is None:
            return Fate.FORWARDED
        self._forget(codes)
        granted = iter(suback.codes)
        whole = tuple(code or next(granted, Reason.UNSPECIFIED) for code in codes)
        return self._suback(replace(suback, codes=whole), codes)

    def _refusal(self, packet_id: int, codes: bytes) -> bytes:
        return self._suback(Suback(packet_id, tuple(codes)), codes)

    def _suback(self, suback: Suback, codes: bytes) -> bytes:
        """`suback` with a Reason String for the refusals of ours among `codes`, unless the broker has put one."""

        def encode(text: str) -> bytes:
            properties = (*suback.properties, *reason_string(text))
            return encode_suback(replace(suback, properties=properties), self._version)

        has_one = value_of(suback.properties, Property.REASON_STRING) is not None
        return self._reason_strings.answer(encode, "" if has_one else of_filters(codes))

    def _remember(self, codes: bytes) -> None:
        """Raises: CloseSession: too many await the broker's answers."""
        self._awaited_bytes += ENTRY_BYTES + len(codes)
        if self._awaited_bytes > AWAITED_BYTES_MAX:
            raise CloseSession(QUOTA)

    def _forget(self, codes: bytes | None) -> None:
        if codes is not None:
            self._awaited_bytes -= ENTRY_BYTES + len(codes)

    def unsubscribe(self, body: bytes) -> int:
        """The number of filters of an UNSUBSCRIBE, which is forwarded. Raises: WireError; CloseSession: too many."""
        try:
            asked = decode_unsubscribe(body, self._version, self._per_packet_max)
        except TooLarge as error:
            raise CloseSession(TOO_MANY_FILTERS) from error
        if not all(map(is_plain, asked.filters)):
            raise Malformed("A topic filter has a control character or a noncharacter.")
        self.filters.leave(asked.packet_id, asked.filters)
        return len(asked.filters)

    def complete_unsuback(self, body: bytes) -> None:
        """The broker has answered it. Raises: WireError."""
        if not self.filters.is_leaving(packet_id_of(body)):
            return
        unsuback = decode_suback(body, self._version)  # the same fields; without codes in 3.1.1
        is_refused = any(map(is_refusal, unsuback.codes))
        (self.filters.stayed if is_refused else self.filters.left)(unsuback.packet_id)

    def forget_all(self) -> None:
        """The broker has begun a session that holds none."""
        self.filters.clear()

    def allowed_by(self, policy: TopicPolicy) -> bool:
        """Whether `policy` allows every filter of the session."""
        return all(map(policy.may_subscribe, self.filters))

    def _reasons(self, asked: Sequence[Subscription], policy: TopicPolicy) -> bytes:
        """For each subscription 0, to be forwarded, or MQTT 5.0's reason code of its refusal (3.9.3)."""
        reasons = [self._reason(subscription.topic_filter, policy) for subscription in asked]
        self._bound_replay(asked, reasons)
        full = self.filters.add(one.topic_filter for one, reason in zip(asked, reasons, strict=True) if not reason)
        return bytes(
            Reason.QUOTA_EXCEEDED if not reason and one.topic_filter in full else reason
            for one, reason in zip(asked, reasons, strict=True)
        )

    def _bound_replay(self, asked: Sequence[Subscription], reasons: list[int]) -> None:
        """Refuse what would have the broker send the same retained messages again and again without a pause: a filter
        that one packet has twice, and one wildcard too many of a device that retains many.
        """
        seen = set[str]()
        room = REPLAYED_MAX // ((self._retained() if self._retained is not None else 0) or 1)
        for number, each in enumerate(asked):
            if reasons[number]:
                continue
            is_wild = "#" in each.topic_filter or "+" in each.topic_filter
            if each.topic_filter in seen or (is_wild and self._wild >= room):
                reasons[number] = Reason.QUOTA_EXCEEDED
            else:
                seen.add(each.topic_filter)
                self._wild += is_wild

    @staticmethod
    def _reason(topic_filter: str, policy: TopicPolicy) -> int:
        if not is_topic_filter(topic_filter) or not is_plain(topic_filter):
            return Reason.TOPIC_FILTER_INVALID
        return _REASONS[policy.subscribe_refusal(topic_filter)]


def _lowered(subscription: Subscription, policy: TopicPolicy) -> Subscription:
    """With the QoS that it is granted, which is in the lowest two bits of its options (3.8.3.1)."""
    asked = subscription.options & 3
    granted = policy.granted_qos(asked)
    return subscription if granted == asked else replace(subscription, options=subscription.options - asked + granted)
