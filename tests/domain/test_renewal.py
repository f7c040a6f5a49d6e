"""Suggested windows: inside the lifetime, spread over the fleet, moved by a campaign."""

import hashlib
from datetime import UTC, datetime, timedelta
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from fleet.domain.credential import Credential, CredentialKind, CredentialState
from fleet.domain.model_rules import Campaign
from fleet.domain.renewal import Window, suggested_window

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
DAY = timedelta(days=1)


def credential(number: int = 0, days: float = 90) -> Credential:
    return Credential(
        fingerprint=hashlib.sha256(number.to_bytes(8)).digest(),
        serial=f"{number:x}",
        kind=CredentialKind.DEVICE,
        holder=f"cam-{number}",
        key_sha256=bytes(32),
        not_before=NOW,
        not_after=NOW + timedelta(days=days),
        state=CredentialState.ISSUED,
        issued_at=NOW,
        der=b"",
    )


@given(st.integers(0, 2**64 - 1), st.floats(0.001, 3650))
def test_a_window_leaves_a_fifth_of_the_lifetime_for_outages(number: int, days: float) -> None:
    own = credential(number, days)
    window = suggested_window(own, None)
    assert own.not_before + timedelta(days=days * 0.6) <= window.start < window.end
    assert window.end <= own.not_after - timedelta(days=days * 0.2) + timedelta(microseconds=2)
    assert suggested_window(own, None) == window


def test_devices_enrolled_in_one_minute_do_not_renew_in_one() -> None:
    starts = sorted(suggested_window(credential(n), None).start for n in range(10_000))
    per_minute = max(
        sum(1 for start in starts[at : at + 60] if start < starts[at] + timedelta(minutes=1))
        for at in range(0, len(starts), 10)
    )
    assert per_minute < 10  # of 10,000: 13.5 days hold 19,440 minutes
    assert starts[-1] - starts[0] > 13 * DAY


def test_a_campaign_moves_older_certificates_forward_and_no_others() -> None:
    campaign = Campaign(before=NOW + DAY, start=NOW + 2 * DAY, spread=timedelta(hours=6))
    starts = sorted(suggested_window(credential(n), campaign).start for n in range(1000))
    windows = [suggested_window(credential(n), campaign) for n in range(1000)]
    assert campaign.start <= starts[0]
    assert max(window.end for window in windows) <= campaign.start + campaign.spread + timedelta(microseconds=1)
    assert max(later - earlier for earlier, later in pairwise(starts)) < timedelta(minutes=5)
    young = replace(credential(), issued_at=campaign.before)
    assert suggested_window(young, campaign) == suggested_window(young, None)


def test_a_campaign_never_moves_a_window_back() -> None:
    late = Campaign(before=NOW + DAY, start=NOW + 89 * DAY, spread=timedelta(hours=6))
    assert suggested_window(credential(), late) == suggested_window(credential(), None)


def test_a_campaign_without_a_spread_is_at_once() -> None:
    window = suggested_window(credential(), Campaign(NOW + DAY, NOW + DAY, timedelta(0)))
    assert window.start == window.end == NOW + DAY


FIRST, LAST = bytes(32), b"\xff" * 32
"""Fingerprints at the two ends of the fleet's spread."""


def test_the_window_of_the_first_and_of_the_last_in_the_fleet() -> None:
    first, last = (suggested_window(replace(credential(days=100), fingerprint=each), None) for each in (FIRST, LAST))
    assert first == Window(NOW + 60 * DAY, NOW + 65 * DAY)
    assert last.end - last.start == 5 * DAY
    assert abs(last.start - (NOW + 75 * DAY)) < timedelta(seconds=1)


def test_a_campaigns_windows_fill_its_spread_and_no_more() -> None:
    campaign = Campaign(before=NOW + DAY, start=NOW + 2 * DAY, spread=timedelta(hours=100))
    first, last = (suggested_window(replace(credential(), fingerprint=each), campaign) for each in (FIRST, LAST))
    assert first == Window(campaign.start, campaign.start + timedelta(hours=5))
    assert last.end - last.start == timedelta(hours=5)
    assert abs(last.end - (campaign.start + campaign.spread)) < timedelta(seconds=1)
