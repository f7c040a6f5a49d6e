"""Claim certificates: shared by a batch of devices, valid for their first enrollment only.

One dismantled device yields the key of the whole batch. So a claim has a model, a quota and an expiry, and misuse puts
it into quarantine until an operator releases it.
"""

from datetime import datetime

from msgspec import Struct

from fleet.domain.errors import Refused

TAKEOVERS_MAX = 5  # a reflashed device requests its own id again once or twice; more attempts are guesses

MISUSE = {
    "claim-only-enrolls": "it was shown where it opens nothing",
    "not-your-model": "it asked for a device of another model",
}
"""Refusal code -> why it puts a claim into quarantine at once."""

TAKEOVERS = frozenset({"already-enrolled", "not-your-key", "device-suspended", "device-revoked", "device-retired"})
"""Refusal codes of requests for an identity that another device holds: too many of them cause a quarantine."""


class Claim(Struct, frozen=True):
    name: str
    model: str
    quota: int
    """Maximum number of certificates."""
    uses: int
    created_at: datetime
    expires_at: datetime
    """notAfter of its certificate."""
    takeovers: int = 0
    """Requests for an identity that another device holds, since its creation or last release."""
    quarantined_at: datetime | None = None
    quarantine_reason: str = ""
    revoked_at: datetime | None = None


def must_be_open(claim: Claim) -> None:
    """Raises: Refused: `claim-revoked`, `claim-quarantined`."""
    if claim.revoked_at is not None:
        raise Refused("claim-revoked", f"The claim {claim.name} has been revoked.")
    if claim.quarantined_at is not None:
        raise Refused(
            "claim-quarantined",
            f"The claim {claim.name} is in quarantine.",
            f"An operator has to check and release it: fleet claim release {claim.name}",
        )


def claim_state(claim: Claim, now: datetime) -> str:
    """Its state: "open", "used up", "expired", "quarantined" or "revoked"."""
    if claim.revoked_at is not None:
        return "revoked"
    if claim.quarantined_at is not None:
        return "quarantined"
    if now >= claim.expires_at:
        return "expired"
    return "used up" if claim.uses >= claim.quota else "open"
