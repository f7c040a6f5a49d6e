"""An act on many devices in steps that end: each takes a bounded number of devices, and says where the next begins.

    step = await one_step(registry, (where,), deed, FIRST, at_most=count, stop=stop)
    step = await one_step(registry, (where,), deed, step.following, at_most=count - step.begun, stop=stop)

Nothing is kept between steps: whoever asks for the next brings the place along. Doing a step again finds that there is
nothing to do, and does no harm.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from fleet.domain.device import FIRST_PLACE, DeviceFilter, Place, place_of
from fleet.domain.ports import Registry
from fleet.services.bulk import WINDOW, Deed, Outcome, act_on_one

STEP_DEVICES_MAX = 500


@dataclass(frozen=True, slots=True)
class StepPlace:
    """Behind which device a step begins: of which of the filters, and where in its pages."""

    number: int = 0
    after: Place = FIRST_PLACE


FIRST = StepPlace()


@dataclass(frozen=True, slots=True)
class Step:
    """What one step has done."""

    outcomes: tuple[Outcome, ...]
    following: StepPlace | None
    """Where the next begins; None when there is nothing left to look at."""


async def one_step(
    registry: Registry,
    filters: Sequence[DeviceFilter],
    deed: Deed,
    place: StepPlace,
    *,
    at_most: int,
    stop: asyncio.Event,
) -> Step:
    """Do `deed` to the next devices of `filters`, one filter after the other: to STEP_DEVICES_MAX at most, and never to
    more than `at_most`. When `stop` is set nothing new is begun, and what was under way is finished.
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
            # Shielded: whoever asked may go away, and what has been begun is finished all the same.
            acts = asyncio.gather(*(act_on_one(registry, device, deed) for device in some))
            outcomes += await asyncio.shield(acts)
            place = StepPlace(place.number, place_of(some[-1], where))
        if len(page) < room:
            place = StepPlace(place.number + 1)
    return Step(tuple(outcomes), None)
