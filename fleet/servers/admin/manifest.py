"""The route that brings in a manifest, some rows at a time. The same rows again change nothing: a request whose
answer was lost is sent again.
"""

from typing import Any

from fleet.domain.access import demand_model
from fleet.domain.errors import FleetError
from fleet.domain.manifest import ManifestRow, key_hash
from fleet.servers.admin.context import Call, Context
from fleet.servers.admin.result import Result
from fleet.services.bulk import new_bulk_id
from fleet.services.importing import Importer, Numbered, RowRefused, checked_row


async def import_devices(context: Context, call: Call) -> Result:
    """Each row stands for itself; of other models than the operator's, none is taken."""
    rows: list[Numbered] = []
    refused: list[RowRefused] = []
    for number, item in enumerate(call.body["rows"], 1):
        line = int(item.get("line", number))
        try:
            demand_model(call.operator, item["model"])
            rows.append(Numbered(line, _row(item)))
        except FleetError as error:
            message = f"{error.message} {error.advice}".rstrip()
            refused.append(RowRefused(line, item["device_id"], error.code, message))
    bulk = call.body.get("bulk", "") or new_bulk_id()
    importer = Importer(
        context.registry, call.act.actor, context.clock, bulk, call.act.address, sees=call.operator.sees
    )
    refused += await importer.take(rows)
    return Result(
        {
            "bulk": bulk,
            "added": importer.counts.added,
            "unchanged": importer.counts.unchanged,
            "refused": [
                {"line": each.line, "device_id": each.device_id, "code": each.code, "message": each.message}
                for each in sorted(refused, key=lambda one: one.line)
            ],
        }
    )


def _row(item: dict[str, Any]) -> ManifestRow:
    """Raises: Invalid."""
    return checked_row(
        item["device_id"],
        item["model"],
        item.get("hardware_serial", ""),
        key_hash(item.get("key_sha256", "")),
        tuple(item.get("tags", {}).items()),
        item.get("groups", ()),
    )
