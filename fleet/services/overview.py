"""What a registry holds, in a few numbers that cost nothing to know."""

from datetime import datetime

from fleet.domain.ports import Registry


async def overview(registry: Registry, now: datetime, *, counts_devices: bool = False) -> dict[str, int]:
    """How many models, stations and operators there are, how many requests wait for an operator, and how far audit and
    events have come. How many devices there are, only with `counts_devices`: it looks at each of them.
    """
    devices = {"devices": await registry.count_devices()} if counts_devices else {}
    return {
        **devices,
        "models": len(await registry.models()),
        "stations": len(await registry.stations()),
        "operators": len(await registry.operators()),
        "requests_pending": (await registry.count_pending(now))[0],
        "audit_rows": await registry.last_audit(),
        "last_event": await registry.last_event(),
    }
