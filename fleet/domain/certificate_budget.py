"""Budget of certificates by device, under any grant: who has one right to ask does not fill the registry and the CRLs.

A token bucket (GCRA) whose whole state is one time in the device's row, `Device.budget_full_at`: when the bucket is
full again. It is read and written with the row that an issuance reads and writes anyway, and only if nobody has written
it meanwhile; so it costs the same however many certificates there are, and holds over restarts and all nodes.
"""

from datetime import datetime, timedelta
from math import ceil

from fleet.domain.device import Device, Model
from fleet.domain.errors import TooMany

CERTIFICATE_BUDGET = "certificate-budget"
DAY = timedelta(days=1)
CLOCKS_DIFFER_MAX = timedelta(seconds=60)  # of two nodes


def _period(model: Model) -> timedelta:
    """In which a device may get as many certificates as its model allows: an agent renews once or twice a lifetime."""
    return min(model.certificate_lifetime, DAY)


def full_again_at(device: Device | None, model: Model, now: datetime) -> datetime | None:
    """When the budget is full again after one more certificate of `device` at `now`; None where there is no limit."""
    count = model.rules.renewal.certificates_per_day
    if not count:
        return None
    before = device.budget_full_at if device is not None else None
    # What no empty bucket comes to is of another rule of the model, or of a clock that was wrong.
    counts = before is not None and before <= now + 2 * _period(model) + CLOCKS_DIFFER_MAX
    return (max(now, before) if before is not None and counts else now) + _period(model) / count


def must_have_budget(device: Device, model: Model, now: datetime) -> None:
    """Raises: TooMany (`certificate-budget`)."""
    full_at = full_again_at(device, model, now)
    if full_at is None or full_at <= now + _period(model):
        return
    count, per = model.rules.renewal.certificates_per_day, "a day" if _period(model) == DAY else "a lifetime"
    seconds = ceil((full_at - now - _period(model)).total_seconds())
    raise TooMany(
        CERTIFICATE_BUDGET,
        f"Device {device.id} has been issued certificates faster than its model allows: {count} {per}.",
        f"Wait {ceil(seconds / 60)} min, find out why it asks, or allow more: "
        f"fleet model set {model.name} --certificates-per-day N",
        retry_after_seconds=seconds,
    )
