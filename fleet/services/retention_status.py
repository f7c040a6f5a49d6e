"""Retention status: the policy, and the records stored."""

from dataclasses import dataclass

from fleet.domain.ports import Registry
from fleet.services.retention import Policy


@dataclass(frozen=True, slots=True)
class RetentionStatus:
    """The policy and the current extent. A sequence is 0 if there is none."""

    policy: Policy
    first_event: int
    last_event: int
    first_audit: int
    last_audit: int


async def retention_status(registry: Registry, policy: Policy) -> RetentionStatus:
    """The retention status of `registry` under `policy`."""
    oldest = await registry.audit(limit=1)
    return RetentionStatus(
        policy,
        await registry.first_event(),
        await registry.last_event(),
        oldest[0].seq if oldest else 0,
        await registry.last_audit(),
    )
