"""Operations on many devices in bounded steps: each takes a number of devices, and returns where the next one starts.

    step = await one_step(registry, (where,), operation, FIRST, at_most=count, stop=stop)
    step = await one_step(registry, (where,), operation, step.following, at_most=count - step.begun, stop=stop)

Nothing is kept between steps: the client passes the position back. A step that is repeated finds nothing to do.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from fleet.domain.device import FIRST_PLACE, DeviceFilter, Place, place_of
from fleet.domain.ports import Registry
from fleet.services.bulk import WINDOW, Operation, Outcome, act_on_one

STEP_DEVICES_MAX = 500


@dataclass(frozen=True, slots=True)
class StepPlace:
    """The position where a step starts: which of the filters, and where in its pages."""

    number: int = 0
    after: Place = FIRST_PLACE


FIRST = StepPlace()


@dataclass(frozen=True, slots=True)
class Step:
    """What one step has done."""

    outcomes: tuple[Outcome, ...]
    following: StepPlace | None
    """Where the next one starts; None at the end."""


async def one_step(
    registry: Registry,
    filters: Sequence[DeviceFilter],
    operation: Operation,
    place: StepPlace,
    *,
    at_most: int,
    stop: asyncio.Event,
) -> Step:
    """Apply `operation` to the next devices of `filters`, one filter after the other: to at most STEP_DEVICES_MAX, and
    never to more than `at_most`. When `stop` is set nothing new is begun, and what is under way is finished.
    """
    outcomes: list[Outcome] = []
    while place.number < len(filters) and len(outcomes) < at_most:
        where = filters[place.number]
        room = min(STEP_DEVICES_MAX, at_most) - len(outcomes)
        if room <= 0 or stop.is_set():
            return Step(tuple(outcomes), place)
        page = await registry.devices(where, after=place.after, limit=room)
        for start in range(0, len(page), WINDOW):
            if stop.is_set():
                return Step(tuple(outcomes), place)
            some = page[start : start + WINDOW]
            # Shielded: the client may disconnect, and what has begun is finished all the same.
            acts = asyncio.gather(*(act_on_one(registry, device, operation) for device in some))
            outcomes += await asyncio.shield(acts)
            place = StepPlace(place.number, place_of(some[-1], where))
        if len(page) < room:
            place = StepPlace(place.number + 1)
    return Step(tuple(outcomes), None)
