"""Published CRLs."""

from typing import Annotated, Self

from msgspec import UNSET, UnsetType

from fleet.domain import crl as domain
from fleet.domain.distribution import kind_of_crl
from fleet.domain.members import about, between
from fleet.servers.admin.records.base import Count, Record, Time
from fleet.wire.armor import pem

HOURS_MAX = 8760 * 5


class Crl(Record):
    """A published CRL."""

    ca: Annotated[str, about("Its CA's subject key identifier, hex.")]
    crl: Annotated[str, about("full, plain, delta, or a shard such as 3-of-128.")]
    path: Annotated[str, about("Beneath the URL at which the fleet publishes.")]
    number: Annotated[Count, about("CRL number (RFC 5280, 5.2.3).")]
    this_update: Time
    next_update: Time
    entries: Annotated[Count, about("Certificates listed.")]

    @classmethod
    def shown(cls, head: domain.CrlHead, **more: str) -> Self:
        return cls.of(head, ca=head.issuer.hex(), crl=kind_of_crl(head.path), **more)


class WholeCrl(Crl):
    """A published CRL with its contents."""

    pem: str

    @classmethod
    def whole(cls, found: domain.Crl) -> Self:
        return cls.shown(found.head, pem=pem("X509 CRL", found.der))


class CrlsToIssue(Record):
    """How the CRLs are to be signed."""

    hours: (
        Annotated[int, between(1, HOURS_MAX, "From thisUpdate to nextUpdate, in place of the setting's.")] | UnsetType
    ) = UNSET


AS_SET = CrlsToIssue()
