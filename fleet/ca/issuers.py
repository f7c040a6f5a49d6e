"""Issuer for several tenants: the permit names the tenant whose CA signs."""

from collections.abc import Callable
from datetime import datetime

from fleet.domain.credential import Credential, CredentialKind
from fleet.domain.enrollment import IssuePermit
from fleet.domain.errors import Refused
from fleet.domain.ports import Issuer

TENANTS = frozenset({CredentialKind.DEVICE})
"""Kinds of holder that a tenant's CA certifies: devices. Stations and the server are the fleet's own."""


class TenantIssuers:
    """Delegates each permit to the issuer that `find` returns for its tenant ("": the fleet's own); implements
    `fleet.domain.ports.Issuer`.
    """

    def __init__(self, find: Callable[[str], Issuer | None]) -> None:
        self._find = find

    def issue(self, permit: IssuePermit, now: datetime) -> Credential:
        """As the issuer found. Raises: Refused: `no-such-tenant`, and what that issuer raises."""
        issuer = self._find(permit.tenant)
        if issuer is None:
            raise Refused(
                "no-such-tenant",
                f"There is no issuing CA for tenant {permit.tenant} here.",
                f"Make it, in the fleet's home: fleet tenant add {permit.tenant}",
            )
        return issuer.issue(permit, now)
