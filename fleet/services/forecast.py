"""What ends when: devices' certificates, tokens and CAs by week, and the weeks that somebody should prepare for.

A CA that ends takes the fleet with it, and does so earlier than its own last day: certificates never outlive their
issuer, so they are cut from the day on which its remaining life is shorter than theirs.
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from msgspec import Struct

from fleet.domain.credential import token_state
from fleet.domain.device import Model
from fleet.domain.ports import Registry

CLIFF_PERCENT = 25.0
CLIFF_FLEET_MIN = 20  # devices: of fewer, any two are a tenth
SERVER_WARNING = timedelta(days=14)  # it renews itself when a third of its life is left: by then something is wrong
WEEK = timedelta(weeks=1)
_END_OF_TIME = datetime(9000, 1, 1, tzinfo=UTC)


class OwnCertificate(Struct, frozen=True):
    """A certificate of the fleet's own."""

    role: str
    """"root", "issuing" or "server"."""
    subject: str
    not_after: datetime
    tenant: str = ""
    """Whose certificates it cuts; "" for the fleet's own."""

    @property
    def of_whom(self) -> str:
        return f" of {self.tenant}" if self.tenant else ""


class Week(Struct, frozen=True):
    """What ends in the seven days from `monday`, 00:00 UTC, on."""

    monday: datetime
    devices: int = 0
    tokens: int = 0
    authorities: tuple[str, ...] = ()
    """Roles, and whose."""


class Warned(Struct, frozen=True):
    """Something to prepare for. `code` is for programs and never changes."""

    code: str
    message: str


class Forecast(Struct, frozen=True):
    devices: int
    """In service with a certificate, valid or not."""
    overdue: int
    """Of them, those whose newest certificate ended before this week."""
    weeks: tuple[Week, ...]
    """From this week on, empty ones included."""
    warnings: tuple[Warned, ...]


async def forecast(
    registry: Registry,
    authorities: Sequence[OwnCertificate],
    *,
    now: datetime,
    weeks: int = 26,
    cliff_percent: float = CLIFF_PERCENT,
) -> Forecast:
    """What ends in this week and the `weeks` - 1 behind it.

    `cliff_percent` of the fleet in one week is a cliff, unless an even spread would come near it: models whose
    certificates live four weeks have a quarter of them end in each.
    """
    monday = _monday(now)
    until = monday + weeks * WEEK
    counts = await registry.expiries(_END_OF_TIME)
    devices = dict(counts)
    open_tokens = [token for token in await registry.tokens() if token_state(token, now) == "open"]
    ahead = tuple(
        Week(
            start,
            devices.get(start, 0),
            sum(start <= token.expires_at < start + WEEK for token in open_tokens),
            tuple(a.role + a.of_whom for a in authorities if start <= a.not_after < start + WEEK),
        )
        for start in (monday + n * WEEK for n in range(weeks))
    )
    total = sum(devices.values())
    models = await registry.models()
    warnings = (
        *_ending(authorities, now, until),
        *_cutting(authorities, models, now),
        *_cliffs(ahead, total, models, cliff_percent),
    )
    return Forecast(total, sum(n for start, n in counts if start < monday), ahead, warnings)


def _monday(at: datetime) -> datetime:
    day = at.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return day - timedelta(days=day.weekday())


def _ending(authorities: Sequence[OwnCertificate], now: datetime, until: datetime) -> list[Warned]:
    warnings = []
    for each in authorities:
        is_ca = each.role != "server"
        if each.not_after <= now:
            message = f"The {each.role} certificate {each.subject} ended on {each.not_after:%Y-%m-%d}."
            warnings.append(Warned("authority-ended" if is_ca else "server-ended", message))
        elif is_ca and each.not_after < until:
            what = f"The {each.role} CA{each.of_whom} {each.subject}"
            message = f"{what} ends on {each.not_after:%Y-%m-%d}, and all it signed with it."
            warnings.append(Warned("authority-ends", message))
        elif not is_ca and each.not_after < now + SERVER_WARNING:
            message = f"The server certificate ends on {each.not_after:%Y-%m-%d}; it should have been renewed by now."
            warnings.append(Warned("server-ends", message))
    return warnings


def _cutting(authorities: Sequence[OwnCertificate], models: Sequence[Model], now: datetime) -> list[Warned]:
    warnings = []
    for tenant in sorted({model.rules.tenant for model in models}):
        cas = [each for each in authorities if each.role != "server" and each.tenant == tenant]
        if not cas:
            continue
        first = min(cas, key=lambda each: each.not_after)
        own = [model for model in models if model.rules.tenant == tenant]
        cut = sorted(model.name for model in own if first.not_after < now + model.certificate_lifetime)
        if not cut or first.not_after <= now:
            continue
        days = (first.not_after - now).days
        message = (
            f"Certificates of {_listed(cut)} are cut already: the {first.role} CA{first.of_whom} has {days} days left, "
            "fewer than their lifetime. From now on all of them end on its last day."
        )
        warnings.append(Warned("authority-cuts-certificates", message))
    return warnings


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return f"model{'s' if len(names) > 1 else ''} {shown}"


def _cliffs(ahead: Sequence[Week], total: int, models: Sequence[Model], percent: float) -> list[Warned]:
    if total < CLIFF_FLEET_MIN:
        return []
    longest = max((model.certificate_lifetime for model in models), default=WEEK)
    even = 100 * WEEK / longest  # a week's share, were they spread evenly
    limit = max(percent, 2 * even)
    return [
        Warned(
            "cliff",
            f"{week.devices} of {total} devices ({100 * week.devices / total:.0f} %) have certificates that end in the "
            f"week of {week.monday:%Y-%m-%d}.",
        )
        for week in ahead
        if 100 * week.devices > limit * total
    ]
