"""The routes that look at the whole: what ends when, and what is kept for how long."""

from dataclasses import asdict

from fleet.servers.admin.context import Call, Context
from fleet.servers.admin.result import Result
from fleet.services.forecast import CLIFF_PERCENT, forecast
from fleet.services.retention_status import retention_status

_KEPT = ("first_event", "last_event", "first_audit", "last_audit")
WEEKS = 26


async def get_forecast(context: Context, call: Call) -> Result:
    seen = await forecast(
        context.registry,
        context.authorities().forecasted(),
        now=call.now,
        weeks=call.query.get("weeks", WEEKS),
        cliff_percent=float(call.query.get("cliff_percent", CLIFF_PERCENT)),
    )
    return Result(
        {
            "devices": seen.devices,
            "overdue": seen.overdue,
            "weeks": [
                {
                    "week": f"{week.monday:%Y-%m-%d}",
                    "devices": week.devices,
                    "tokens": week.tokens,
                    "authorities": list(week.authorities),
                }
                for week in seen.weeks
            ],
            "warnings": [{"code": each.code, "message": each.message} for each in seen.warnings],
        }
    )


async def get_retention(context: Context, call: Call) -> Result:
    seen = await retention_status(context.registry, context.retention())
    return Result({**asdict(seen.policy), **{name: getattr(seen, name) for name in _KEPT}})
