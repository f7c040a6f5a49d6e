"""Grants, the rights by which a certificate may be requested; one module each.

To add one: a frozen class that implements `fleet.domain.issuance_context.Grant`, and in `fleet.services.credentials`
the authenticator that derives it from the client's credentials.
"""

from fleet.domain.grants.approval import ApprovalGrant
from fleet.domain.grants.claim import ClaimGrant
from fleet.domain.grants.idevid import IdevidGrant
from fleet.domain.grants.manifest import ManifestGrant
from fleet.domain.grants.renewal import RenewalGrant
from fleet.domain.grants.station import StationGrant
from fleet.domain.grants.token import TokenGrant

__all__ = ["ApprovalGrant", "ClaimGrant", "IdevidGrant", "ManifestGrant", "RenewalGrant", "StationGrant", "TokenGrant"]
