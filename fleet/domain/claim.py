"""Claim certificates: shared by a batch of devices, good for their first enrollment and for nothing else.

Whoever takes one device apart has the key of the whole batch. So a claim has a model, a quota and an end; and what no
device of the batch would do with it puts it into quarantine, until an operator has looked.
"""

from dataclasses import dataclass
from datetime import datetime

TAKEOVERS_MAX = 5  # a device that was reflashed asks for its own id again, once or twice; more is somebody guessing

MISUSE = {
    "claim-only-enrolls": "it was shown where it opens nothing",
    "not-your-model": "it asked for a device of another model",
}
"""Code of a refusal: why that alone puts a claim into quarantine."""

TAKEOVERS = frozenset({"already-enrolled", "not-your-key", "device-suspended", "device-revoked", "device-retired"})
"""Codes of refusals that say that it asked for an identity that has an owner: one too many of these does."""


@dataclass(frozen=True, slots=True)
class Claim:
    name: str
    model: str
    quota: int
    """How many certificates it may earn."""
    uses: int
    created_at: datetime
    expires_at: datetime
    """When its certificate ends."""
    takeovers: int = 0
    """How often it asked for an identity that has an owner, since it was made or last released."""
    quarantined_at: datetime | None = None
    quarantine_reason: str = ""
    revoked_at: datetime | None = None


def claim_state(claim: Claim, now: datetime) -> str:
    """What it is good for: "open", "used up", "expired", "quarantined" or "revoked"."""
    if claim.revoked_at is not None:
        return "revoked"
    if claim.quarantined_at is not None:
        return "quarantined"
    if now >= claim.expires_at:
        return "expired"
    return "used up" if claim.uses >= claim.quota else "open"
