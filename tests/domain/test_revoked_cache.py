"""What was revoked for good, and for how long it is remembered."""

import pytest
from msgspec.structs import replace

from fleet.domain.changes import Event, EventKind
from fleet.domain.device import DeviceState
from fleet.domain.errors import Refused
from fleet.domain.revoked_cache import RevokedCache
from tests.services.test_identity import DEVICE


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
