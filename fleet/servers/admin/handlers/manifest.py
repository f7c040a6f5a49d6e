"""Manifests, imported some rows at a time. The same rows again change nothing: a request whose answer was lost is sent
again.
"""

from msgspec import UNSET

from fleet.domain import manifest
from fleet.domain.access import NotPermitted, Permission, demand_model
from fleet.domain.errors import FleetError
from fleet.domain.manifest import key_hash
from fleet.servers.admin.auth import audit_partial_refusal
from fleet.servers.admin.context import Call, Context
from fleet.servers.admin.records.devices import MANIFEST_SIZE_MAX, ManifestPart, ManifestRow, ManifestTaken, RefusedRow
from fleet.servers.admin.routing import Result, post
from fleet.services.bulk import new_bulk_id
from fleet.services.importing import Importer, Numbered, RowRefused, checked_row


@post(
    "/v1/manifest",
    Permission.DEVICE_CREATE,
    "Register the devices of a manifest, some rows at a time; the same rows again change nothing.",
    body_size_max=MANIFEST_SIZE_MAX,
    is_one_change=False,
)
async def import_devices(context: Context, call: Call, body: ManifestPart) -> Result[ManifestTaken]:
    """Each row is taken or refused by itself; rows of models that the operator does not see are refused and audited."""
    rows: list[Numbered] = []
    refused: list[RowRefused] = []
    not_permitted: NotPermitted | None = None
    for number, item in enumerate(body.rows, 1):
        line = number if item.line is UNSET else item.line
        try:
            demand_model(call.operator, item.model)
            rows.append(Numbered(line, _row(item)))
        except FleetError as error:
            if isinstance(error, NotPermitted):
                not_permitted = error
            refused.append(RowRefused.by(error, line, item.device_id))
    if not_permitted is not None:
        await audit_partial_refusal(context, call, not_permitted)
    act, bulk = call.act, body.bulk or new_bulk_id()
    importer = Importer(context.registry, act.actor, context.clock, bulk, act.address, sees=call.operator.sees)
    refused += await importer.take(rows)
    return Result(
        ManifestTaken(
            bulk=bulk,
            added=importer.counts.added,
            unchanged=importer.counts.unchanged,
            refused=[RefusedRow.of(each) for each in sorted(refused, key=lambda one: one.line)],
        )
    )


def _row(item: ManifestRow) -> manifest.ManifestRow:
    """Raises: Invalid."""
    return checked_row(
        item.device_id,
        item.model,
        item.hardware_serial,
        key_hash(item.key_sha256),
        tuple(item.tags.items()),
        item.groups,
    )
