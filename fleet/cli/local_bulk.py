"""Acts on many devices at a home itself."""

import asyncio
import signal
from collections.abc import Callable
from pathlib import Path

from fleet.cli.desk import Order, Went
from fleet.cli.home import OPERATOR, opened, utc_now
from fleet.domain.device import Device, DeviceFilter
from fleet.services.bulk import Move, Tagging, Tally, act_on_many, matching, new_bulk_id


async def devices_of(home: Path, where: DeviceFilter) -> list[Device]:
    async with opened(home) as fleet:
        return [device async for device in matching(fleet.registry, where)]


async def count_of(home: Path, where: DeviceFilter) -> int:
    async with opened(home) as fleet:
        return await fleet.registry.count_devices(where)


async def carried_out(home: Path, order: Order, count: int, heard: Callable[[Tally], None]) -> Went:
    """How it went; when Ctrl-C or SIGTERM cut it short, what was under way has been finished."""
    stop, tally = asyncio.Event(), Tally()
    bulk = new_bulk_id()
    deed = _deed(order, bulk)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    try:
        heard(tally)
        async with opened(home) as fleet:
            async for outcome in act_on_many(fleet.registry, order.where, deed, at_most=count, stop=stop):
                tally.count(outcome)
                heard(tally)
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
    return Went(bulk, tally, stop.is_set() and tally.seen < count)


def _deed(order: Order, bulk: str) -> Move | Tagging:
    if order.retag is not None:
        return Tagging(order.retag, OPERATOR, order.reason, bulk, utc_now)
    return Move(order.act, OPERATOR, order.reason, bulk, utc_now)
