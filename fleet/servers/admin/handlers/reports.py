"""The server itself, and the whole fleet: health, status, forecast, retention, the API's description."""

from functools import lru_cache
from typing import Any

import msgspec

from fleet.domain.access import Permission
from fleet.domain.errors import Unavailable
from fleet.servers.admin.context import Call, Context
from fleet.servers.admin.metrics import MEDIA_TYPE, Sample, exposition, of_worker, outcomes
from fleet.servers.admin.records.reports import (
    Degraded,
    Forecast,
    ForecastQuery,
    Health,
    Retention,
    Status,
    StatusQuery,
)
from fleet.servers.admin.routing import AccessLevel, Result, get
from fleet.services.forecast import forecast


@get("/healthz", AccessLevel.ANYBODY, "Health check.")
async def health(context: Context, call: Call) -> Result[Health]:
    await context.registry.last_event()
    if context.drains():
        raise Unavailable("draining", "The server is about to stop.", "Use another node, or retry later.")
    if not context.broker_answers():
        raise Unavailable("broker-silent", "The MQTT broker does not answer.", "Look at the broker and its log.")
    reasons: list[Degraded] = [] if context.broker_saves() else ["broker-not-saved"]
    reasons += (await context.crl_report(call.now)).reasons
    return Result(Health(status="degraded", reasons=reasons) if reasons else Health(status="ok"))


@get("/v1/status", Permission.STATUS_READ, "Uptime and counters.", for_stations=True)
async def status(context: Context, call: Call, query: StatusQuery) -> Result[Status]:
    uptime = (call.now - context.started).total_seconds()
    if call.caller is None or call.caller.operator is None:
        return Result({"uptime_seconds": uptime, **context.status()})
    registry = context.registry
    devices = {"devices": await registry.count_devices()} if query.devices is not None else {}  # looks at each of them
    held = {
        **devices,
        "models": len(await registry.models()),
        "stations": len(await registry.stations()),
        "operators": len(await registry.operators()),
        "requests_pending": (await registry.count_pending(call.now))[0],
        "audit_rows": await registry.last_audit(),
        "last_event": await registry.last_event(),
    }
    crls = msgspec.to_builtins(await context.crl_report(call.now))
    return Result({"uptime_seconds": uptime, "registry": held, "crls": crls, **context.status()})


@get(
    "/v1/metrics",
    Permission.STATUS_READ,
    "Metrics of all workers, in the text format of Prometheus.",
    media_types=(MEDIA_TYPE,),
)
async def metrics(context: Context, call: Call) -> Result[str]:
    counted, workers = context.counters(), context.workers()
    samples = [sample for number, each in counted.items() for sample in of_worker(number, each)]
    samples += outcomes("supervisor", {"mqtt": workers.get("mqtt", {})})
    crls = await context.crl_report(call.now)
    of_all = {
        "fleet_broker_saves": context.broker_saves(),
        "fleet_workers": workers.get("count"),
        "fleet_worker_restarts_total": workers.get("restarts"),
        "fleet_requests_pending": (await context.registry.count_pending(call.now))[0],
        "fleet_crls_published": crls.published,
        "fleet_crls_next_update_seconds": crls.next_update_seconds,
        "fleet_crls_late": crls.late,
        "fleet_crls_unlisted": crls.unlisted,
    }
    samples += [Sample(name, value, {}) for name, value in of_all.items() if value is not None]
    return Result(media_type=MEDIA_TYPE, raw=exposition(samples))


@get("/v1/openapi.json", AccessLevel.OPERATOR, "This description.", has_etag=True)
async def openapi(context: Context, call: Call) -> Result[dict[str, Any]]:
    return Result(_description())


@lru_cache(maxsize=1)
def _description() -> dict[str, Any]:
    from fleet.servers.admin.openapi import description
    from fleet.servers.admin.sections import all_routes

    return description(all_routes())


@get(
    "/v1/forecast",
    Permission.STATUS_READ,
    "What expires when: certificates, tokens and CAs by week, and what to prepare for.",
)
async def get_forecast(context: Context, call: Call, query: ForecastQuery) -> Result[Forecast]:
    seen = await forecast(
        context.registry,
        context.authorities().forecasted(),
        now=call.now,
        weeks=query.weeks,
        cliff_percent=query.cliff_percent,
    )
    return Result(Forecast.shown(seen))


@get("/v1/retention", Permission.STATUS_READ, "How long the registry keeps records, and what it has now.")
async def get_retention(context: Context, call: Call) -> Result[Retention]:
    registry, oldest = context.registry, await context.registry.audit(limit=1)
    return Result(
        Retention.of(
            context.retention(),
            first_event=await registry.first_event(),
            last_event=await registry.last_event(),
            first_audit=oldest[0].seq if oldest else 0,
            last_audit=await registry.last_audit(),
        )
    )
