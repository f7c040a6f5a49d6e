"""What publishing CRLs needs: the store of revoked certificates and published CRLs, and a CA's signature."""

from collections.abc import Sequence
from datetime import datetime
from typing import Protocol

from fleet.domain.crl import (
    CertificateFacts,
    Crl,
    CrlEntry,
    CrlForm,
    CrlHead,
    Noted,
    PendingRevocation,
    Revocation,
    Unlisted,
)
from fleet.domain.lease import Lease


class CrlStore(Protocol):
    """Revoked certificates, and the CRLs made of them. One node at a time writes here: the holder of a lease."""

    async def revocation(self, serial: str) -> Revocation | None:
        """By serial number, lower-case hex: the certificate is revoked or on hold, or was on hold."""

    async def certificate_facts(self, serial: str) -> CertificateFacts | None:
        """By serial number, lower-case hex, in one look-up; None: no certificate of this number is known."""

    async def pending_revocations(self, limit: int) -> list[PendingRevocation]:
        """Revocations whose CRL entry is still to be made, at most `limit`."""

    async def unpublished(self) -> list[tuple[bytes, int]]:
        """Issuer and bucket of every entry that is in no CRL yet."""

    async def unlisted(self) -> list[Unlisted]:
        """Revocations that no CRL has yet, by CA."""

    async def crl_entries(self, issuer: bytes, buckets: range, since: datetime) -> list[bytes]:
        """Entries of certificates of the CA `issuer`, in these buckets, that expire at `since` or later."""

    async def changed_entries(self, issuer: bytes, base: int) -> list[bytes]:
        """Entries of the CA `issuer` that no CRL up to the number `base` has, removals included."""

    async def buckets_after(self, issuer: bytes, number: int) -> list[tuple[int, int]]:
        """Buckets with entries that CRLs of the CA `issuer` after the number `number` brought, each with the newest of
        these numbers.
        """

    async def last_crl_number(self, issuer: bytes) -> int:
        """The number of the CRL that brought the newest entry of the CA `issuer`; 0: it has none."""

    async def latest_end(self) -> datetime:
        """notAfter of the certificate that ends last."""

    async def crl_heads(self) -> list[CrlHead]:
        """Of every published CRL, by path."""

    async def crl_head(self, path: str) -> CrlHead | None: ...

    async def crl(self, path: str) -> Crl | None:
        """The CRL published at this URL path."""

    async def store_entries(self, entries: Sequence[CrlEntry], lease: Lease, now: datetime) -> None:
        """Store entries; one whose revocation has changed since it was read stays pending.

        Raises: Conflict (`lease-held`): another node publishes; nothing was written. Unavailable.
        """

    async def take_over(self, lease: Lease, now: datetime) -> None:
        """Have `lease`, whoever has it: what its owner before has not stored, it cannot. Raises: Unavailable."""

    async def publish_crls(self, crls: Sequence[Crl], whole: Sequence[bytes], lease: Lease, now: datetime) -> None:
        """Store `crls`, of one number, in place of those of their paths. Every unpublished entry of the CAs `whole` is
        in one of them.

        Raises: Conflict (`lease-held`): another node publishes; nothing was written. Unavailable.
        """

    async def drop_crls(self, paths: Sequence[str], lease: Lease, now: datetime) -> None:
        """Delete the CRLs at these URL paths. Raises: Conflict (`lease-held`). Unavailable."""

    async def add_revoked(self, revoked: Sequence[tuple[Revocation, bytes]]) -> None:
        """List certificates of the CAs with these key identifiers. What is listed already gets a reason where it has
        none or is on hold, KEY_COMPROMISE always, and the earlier time. A hold is of certificates alone that are not
        in the registry: of those that are, the state of their device says it.
        """

    async def listed_after(self, issuer: bytes, number: int, serial: str, limit: int) -> list[Noted]:
        """What CRLs of the CA `issuer` after the number `number` brought, and that one itself after `serial`; in that
        order, at most `limit`.
        """

    async def drop_revoked(self, expired: datetime, issuer: bytes, released: int, lease: Lease, now: datetime) -> None:
        """Delete the entries of the CA `issuer` that expired before `expired`, and removals that CRLs up to the number
        `released` have.

        Raises: Conflict (`lease-held`). Unavailable.
        """


class CrlSigner(Protocol):
    """Signs the CRLs of one CA."""

    def sign(self, form: CrlForm, entries: Sequence[bytes]) -> bytes:
        """The CRL with these entries, DER."""
