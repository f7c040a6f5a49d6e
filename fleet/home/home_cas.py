"""Every CA of a home: its role, its certificate, where its key may be, and whose it is."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509

from fleet.domain.ca_role import CaRole
from fleet.home.authorities import Authorities
from fleet.home.ca_store import Authority
from fleet.home.layout import Home, certificate_in


@dataclass(frozen=True, slots=True)
class HomeCa:
    """A CA of a home."""

    role: CaRole
    certificate: x509.Certificate
    key_file: Path | None
    """May be absent: the key is elsewhere. None: it has no place in the home."""
    tenant: str = ""
    """Whose it is; "" for the fleet's own."""

    @property
    def key_here(self) -> Path | None:
        """The file of its key, if that is in the home."""
        return self.key_file if self.key_file is not None and self.key_file.exists() else None


def home_cas(home: Home, authorities: Authorities, roles: Collection[CaRole] = frozenset(CaRole)) -> list[HomeCa]:
    """The CAs of `roles`, the fleet's own first, of each tenant its root first, present ones before former ones; the
    operators' CA last. A root that tenants share is the fleet's.

    Raises: Invalid (`bad-certificate-file`). OSError.
    """
    found = [ca for each in authorities.all for ca in _of(each, has_root=_has_root(each, authorities.own))]
    if CaRole.OPERATORS in roles and home.operators_certificate.exists():
        found.append(HomeCa(CaRole.OPERATORS, certificate_in(home.operators_certificate), home.operators_key))
    return [ca for ca in found if ca.role in roles]


def _has_root(authority: Authority, own: Authority) -> bool:
    return not authority.tenant or authority.root != own.root


def _of(authority: Authority, *, has_root: bool) -> Iterator[HomeCa]:
    tenant = authority.tenant
    if has_root:
        yield HomeCa(CaRole.ROOT, authority.root, authority.root_key_file, tenant)
        for root in authority.former_roots:
            yield HomeCa(CaRole.FORMER_ROOT, root.certificate, root.key_file, tenant)
    yield HomeCa(CaRole.ISSUING, authority.issuing, authority.key_file, tenant)
    for former in authority.former:
        yield HomeCa(CaRole.FORMER, former, authority.key_file_of(former), tenant)
    for between in dict.fromkeys((*authority.above, *authority.above_former)):
        yield HomeCa(CaRole.INTERMEDIATE, between, None, tenant)
