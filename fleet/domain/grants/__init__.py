"""The rights by which a certificate may be asked for, each in a file of its own.

To add one: a frozen class with what `fleet.domain.application.Grant` asks for, and in `fleet.services.evidence` the
finder that turns what a client shows into it.
"""

from fleet.domain.grants.approval import ApprovalGrant
from fleet.domain.grants.claim import ClaimGrant
from fleet.domain.grants.idevid import IdevidGrant
from fleet.domain.grants.manifest import ManifestGrant
from fleet.domain.grants.renewal import RenewalGrant
from fleet.domain.grants.station import StationGrant
from fleet.domain.grants.token import TokenGrant

__all__ = [
    "ApprovalGrant",
    "ClaimGrant",
    "IdevidGrant",
    "ManifestGrant",
    "RenewalGrant",
    "StationGrant",
    "TokenGrant",
]
