"""What a registry keeps, and for how long."""

from dataclasses import dataclass

from fleet.domain.ports import Registry
from fleet.services.retention import Policy


@dataclass(frozen=True, slots=True)
class RetentionStatus:
    """The rule, and what there is now. A sequence is 0 when there is none."""

    policy: Policy
    first_event: int
    last_event: int
    first_audit: int
    last_audit: int


async def retention_status(registry: Registry, policy: Policy) -> RetentionStatus:
    """What `registry` keeps under `policy`."""
    oldest = await registry.audit(limit=1)
    return RetentionStatus(
        policy,
        await registry.first_event(),
        await registry.last_event(),
        oldest[0].seq if oldest else 0,
        await registry.last_audit(),
    )
