"""The budget of certificates by device: a token bucket that scales with the certificates' lifetime."""

from datetime import UTC, datetime, timedelta

import pytest
from msgspec.structs import replace

from fleet.domain.certificate_budget import full_again_at, must_have_budget
from fleet.domain.device import Device, DeviceId, DeviceState, Model
from fleet.domain.errors import TooMany
from fleet.domain.model_rules import rules_of

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
DAY, HOUR, MINUTE = timedelta(days=1), timedelta(hours=1), timedelta(minutes=1)
DEVICE = Device(DeviceId("cam-7"), "cam", DeviceState.ACTIVE, NOW)


def model(lifetime: timedelta = 90 * DAY, count: int = 24) -> Model:
    return Model("cam", lifetime, rules=rules_of({"renewal": {"certificates_per_day": count}}))


def issued(device: Device, under: Model, now: datetime) -> Device:
    must_have_budget(device, under, now)
    return replace(device, budget_full_at=full_again_at(device, under, now))


def issue_all(device: Device, under: Model, now: datetime, most: int = 1000) -> tuple[int, Device]:
    """How many certificates it gets at once."""
    for count in range(most):
        try:
            device = issued(device, under, now)
        except TooMany:
            return count, device
    return most, device


@pytest.mark.parametrize("lifetime", [MINUTE, 5 * MINUTE, HOUR, DAY, 90 * DAY, 3650 * DAY])
def test_as_many_at_once_as_in_a_period_and_then_evenly(lifetime: timedelta) -> None:
    under, period = model(lifetime), min(lifetime, DAY)
    count, device = issue_all(DEVICE, under, NOW)
    assert count == 24
    with pytest.raises(TooMany) as caught:
        must_have_budget(device, under, NOW)
    wait = timedelta(seconds=caught.value.retry_after_seconds)
    assert period / 24 <= wait < period / 24 + timedelta(seconds=1)
    minutes = int(caught.value.advice.split()[1])
    assert caught.value.advice.startswith(f"Wait {minutes} min,")
    assert wait <= minutes * MINUTE < wait + MINUTE
    assert issue_all(device, under, NOW + wait)[0] == 1
    assert issue_all(device, under, NOW + period)[0] == 24
    assert issue_all(device, under, NOW + 100 * period)[0] == 24


@pytest.mark.parametrize("lifetime", [MINUTE, 10 * MINUTE, DAY, 90 * DAY])
def test_an_agent_that_renews_twice_a_lifetime_is_never_refused(lifetime: timedelta) -> None:
    device, under, now = DEVICE, model(lifetime), NOW
    for _ in range(200):
        for _ in range(6):  # as often asked for in vain
            device = issued(device, under, now)
        now += lifetime / 2


def test_no_limit() -> None:
    assert issue_all(DEVICE, model(count=0), NOW) == (1000, DEVICE)


def test_another_limit_or_clock_counts_from_the_next_certificate_on() -> None:
    _, device = issue_all(DEVICE, model(), NOW)
    assert issue_all(device, model(count=0), NOW)[0] == 1000
    assert issue_all(device, model(HOUR), NOW)[0] == 24  # that was under another rule
    fast = replace(DEVICE, budget_full_at=NOW + 1000 * DAY)
    assert issue_all(fast, model(), NOW)[0] == 24


@pytest.mark.parametrize("lifetime", [MINUTE, DAY])
def test_two_nodes_whose_clocks_differ_give_no_more(lifetime: timedelta) -> None:
    _, device = issue_all(DEVICE, model(lifetime), NOW + MINUTE)
    assert issue_all(device, model(lifetime), NOW)[0] == 0


def test_a_new_devices_certificate_counts() -> None:
    assert full_again_at(None, model(), NOW) == NOW + HOUR
    assert full_again_at(None, model(count=0), NOW) is None
