"""What a registry holds, in a few numbers that cost nothing to know."""

from fleet.domain.ports import Registry


async def overview(registry: Registry) -> dict[str, int]:
    """How many models, stations and operators there are, and how far audit and events have come."""
    return {
        "models": len(await registry.models()),
        "stations": len(await registry.stations()),
        "operators": len(await registry.operators()),
        "audit_rows": await registry.last_audit(),
        "last_event": await registry.last_event(),
    }
