"""The routes that look at the whole: what ends when, and proofs from the audit."""

from dataclasses import asdict

from fleet.domain.audit_proof import proof_text
from fleet.domain.errors import Invalid
from fleet.servers.admin.parts import Call, Parts
from fleet.servers.admin.reply import Reply
from fleet.services.audit_proving import prove, seq_of_issue
from fleet.services.forecast import CLIFF_PERCENT, forecast
from fleet.services.retention_status import retention_status

_KEPT = ("first_event", "last_event", "first_audit", "last_audit")
WEEKS = 26


async def get_forecast(parts: Parts, call: Call) -> Reply:
    seen = await forecast(
        parts.registry,
        parts.authorities.forecasted(),
        now=call.now,
        weeks=call.query.get("weeks", WEEKS),
        cliff_percent=float(call.query.get("cliff_percent", CLIFF_PERCENT)),
    )
    return Reply(
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


async def get_retention(parts: Parts, call: Call) -> Reply:
    seen = await retention_status(parts.registry, parts.retention)
    return Reply({**asdict(seen.policy), **{name: getattr(seen, name) for name in _KEPT}})


async def prove_row(parts: Parts, call: Call) -> Reply:
    """Row `seq`, or the row that recorded the issue of certificate `serial`."""
    seq, serial = call.query.get("seq"), call.query.get("serial")
    if (seq is None) == (serial is None):
        raise Invalid("bad-request", "Give seq or serial, one of the two.")
    if seq is None:
        seq = await seq_of_issue(parts.registry, serial or "")
    return Reply(raw=proof_text(await prove(parts.registry, seq)).encode("ascii"))
