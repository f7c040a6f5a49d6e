"""Credentials of one holder in order of issue: which of them a later one's first use ends."""

import hashlib
from datetime import UTC, datetime, timedelta

from fleet.domain.credential import USABLE, Credential, CredentialKind, CredentialState, usable_before

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


def credential(number: int, state: CredentialState) -> Credential:
    return Credential(
        fingerprint=hashlib.sha256(number.to_bytes(8)).digest(),
        serial=f"{number:x}",
        kind=CredentialKind.DEVICE,
        holder="cam-1",
        key_sha256=bytes(32),
        not_before=NOW,
        not_after=NOW + timedelta(days=90),
        state=state,
        issued_at=NOW,  # all at once: only their order tells which is earlier
        der=b"",
    )


def test_the_usable_ones_before_a_certificate() -> None:
    held = [credential(n, state) for n, state in enumerate([*CredentialState, *CredentialState])]
    for index, one in enumerate(held):
        assert usable_before(held, one.fingerprint) == [c for c in held[:index] if c.state in USABLE]


def test_none_is_before_a_certificate_that_is_not_listed() -> None:
    held = [credential(n, CredentialState.ISSUED) for n in range(3)]
    assert usable_before(held[1:], held[0].fingerprint) == []
    assert usable_before([], held[0].fingerprint) == []
