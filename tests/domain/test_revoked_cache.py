"""What was revoked for good, and for how long it is remembered."""

from datetime import timedelta

import pytest
from msgspec.structs import replace

from fleet.domain.changes import Event, EventKind
from fleet.domain.device import DeviceState
from fleet.domain.distrust import Distrust, rule_text
from fleet.domain.errors import Refused
from fleet.domain.revoked_cache import RevokedCache
from tests.services.test_identity import DEVICE, NOW


def test_a_device_that_was_revoked_is_so_in_every_record() -> None:
    cache = RevokedCache()
    for state in DeviceState:
        assert cache.as_revoked("cam-1", replace(DEVICE, state=state)) == replace(DEVICE, state=state)
    assert cache.as_revoked("cam-1", None) is None
    cache.on_events([Event(EventKind.DEVICE_STATE, "cam-1", "retired")])
    for state in DeviceState:
        shown = cache.as_revoked("cam-1", replace(DEVICE, state=state))
        assert shown is not None
        assert shown.state == (state if state is DeviceState.RETIRED else DeviceState.REVOKED)
    with pytest.raises(Refused) as caught:
        cache.as_revoked("cam-1", None)
    assert caught.value.code == "device-revoked"


def test_rules_of_distrust_are_kept_until_they_are_undone() -> None:
    cache, rules = RevokedCache(), [Distrust(f"{number:012x}", NOW, NOW, "cam") for number in range(3)]
    assert cache.distrusts(rules[:1]) == (rules[0],)
    cache.on_distrusts(rules[:1])
    cache.on_event(Event(EventKind.DISTRUST_CHANGED, rules[1].id, rule_text(rules[1])))
    cache.on_event(Event(EventKind.DISTRUST_CHANGED, "of a later release", "{}"))
    assert cache.distrusts(()) == tuple(rules[:2])
    longer = replace(rules[0], issued_before=NOW + timedelta(days=1))
    assert cache.distrusts([longer, rules[2]]) == (longer, rules[2], rules[1])
    for rule in rules:
        cache.on_event(Event(EventKind.DISTRUST_CHANGED, rule.id))
    assert cache.distrusts(()) == ()
