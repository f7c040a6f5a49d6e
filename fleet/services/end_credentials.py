"""Ends many certificates at once, of any holders; sessions that use one are closed."""

from collections.abc import Mapping

from fleet.domain.access import Act
from fleet.domain.changes import Change, Event, EventKind, made_by
from fleet.domain.ports import Registry
from fleet.domain.writes import EndCredentials

CHUNK = 500  # in one Change


async def end_certificates(registry: Registry, holders: Mapping[bytes, str], *, act: Act, **detail: str) -> None:
    """End the certificates in `holders`, a map of fingerprint to holder. `detail` goes into the audit.

    Raises: Unavailable.
    """
    fingerprints = tuple(holders)
    for start in range(0, len(fingerprints), CHUNK):
        chunk = fingerprints[start : start + CHUNK]
        events = tuple(Event(EventKind.CREDENTIAL_ENDED, holders[each], each.hex()) for each in chunk)
        entry = made_by(act, "credential.end", "certificates", count=str(len(chunk)), **detail)
        await registry.commit(Change(entry, (EndCredentials(chunk, act.now),), events))
