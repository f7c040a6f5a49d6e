"""Grants, the rights by which a certificate may be requested: a module for each.

To add one: a frozen subclass of `FirstGrant` that implements `fleet.domain.issuance_context.Grant`, its name in GRANTS
here, and in `fleet.services.credentials` the authenticator that derives it from the client's credentials.
"""

from fleet.domain.grants.approval import ApprovalGrant
from fleet.domain.grants.base import Declared
from fleet.domain.grants.claim import ClaimGrant
from fleet.domain.grants.idevid import IdevidGrant
from fleet.domain.grants.manifest import ManifestGrant
from fleet.domain.grants.renewal import RenewalGrant
from fleet.domain.grants.station import StationGrant
from fleet.domain.grants.token import TokenGrant

__all__ = [
    "COVERING_THE_FIELD", "ApprovalGrant", "ClaimGrant", "IdevidGrant", "ManifestGrant", "RenewalGrant", "StationGrant",
    "TokenGrant",
]  # fmt: skip

GRANTS: tuple[type[Declared], ...] = (
    TokenGrant, StationGrant, ClaimGrant, IdevidGrant, ManifestGrant, ApprovalGrant, RenewalGrant,
)  # fmt: skip
COVERING_THE_FIELD = frozenset(kind.word for kind in GRANTS if kind.covers_the_field)
"""Words of grants: what is issued by any other, also by one that nobody knows, is for new devices only."""
