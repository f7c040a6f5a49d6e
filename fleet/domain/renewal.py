"""Renewal windows: one for each certificate, so that a fleet enrolled within a minute does not renew within one (cf.
RFC 9773).

A certificate's position in the fleet's spread is derived from its fingerprint, so the window is stable.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta

from msgspec import Struct

from fleet.domain.credential import Credential
from fleet.domain.distrust import Distrust
from fleet.domain.model_rules import Campaign

WINDOW_BEGINS = 0.60  # of the lifetime, for the first in the fleet
WINDOW_SPREAD = 0.15  # of the lifetime, between the first and the last
WINDOW_LENGTH = 0.05  # of the lifetime, for each: a fifth remains for outages
CAMPAIGN_LENGTH = 0.05  # of the campaign's spread
INSTANT = timedelta(seconds=1)  # the shortest window: it is given in whole seconds


class Window(Struct, frozen=True):
    """Renew at a random time in [start, end); at once when that has passed."""

    start: datetime
    end: datetime


def suggested_window(credential: Credential, campaign: Campaign | None, distrusts: Sequence[Distrust] = ()) -> Window:
    """The window of `credential`; an earlier one if `campaign` covers it, or one of `distrusts`, which do: that has
    begun, and the clients' own choice of a time within it spreads them.
    """
    windows = [_usual_window(credential, campaign)]
    windows += [Window(rule.created_at, rule.created_at + max(rule.spread, INSTANT)) for rule in distrusts]
    return min(windows, key=lambda window: window.start)


def _usual_window(credential: Credential, campaign: Campaign | None) -> Window:
    share = _share(credential.fingerprint)
    life = credential.not_after - credential.not_before
    start = credential.not_before + life * (WINDOW_BEGINS + WINDOW_SPREAD * share)
    usual = Window(start, start + life * WINDOW_LENGTH)
    if campaign is None or credential.issued_at >= campaign.before:
        return usual
    start = campaign.start + campaign.spread * (share * (1 - CAMPAIGN_LENGTH))
    return min(usual, Window(start, start + campaign.spread * CAMPAIGN_LENGTH), key=lambda window: window.start)


def _share(fingerprint: bytes) -> float:
    """A uniformly distributed number in [0, 1), derived from a hash."""
    return int.from_bytes(fingerprint[:6]) / (1 << 48)
