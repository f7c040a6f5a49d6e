"""Refusals of devices over SQL: the reads and the statements of a domain.device_refusal.RefusalStore."""

from collections.abc import Sequence

from fleet.domain.device_refusal import DeviceRefusal
from fleet.storage.mapping import table_of
from fleet.storage.node_messages import SqlNodeMessageStore
from fleet.storage.queries import Query
from fleet.storage.statement import Statement

REFUSAL = table_of("device_refusal", DeviceRefusal)

_SET = ", ".join(f"{column} = excluded.{column}" for column in REFUSAL.columns if column != "device_id")
KEEP = Statement(f"""
    INSERT INTO device_refusal ({", ".join(REFUSAL.columns)})
    SELECT $1::text, $2::bigint, $3::text, $4::text, $5::text
    WHERE EXISTS (SELECT 1 FROM device WHERE id = $1::text)
    ON CONFLICT (device_id) DO UPDATE SET {_SET} WHERE device_refusal.refused_at <= excluded.refused_at""")
LAST = Query(REFUSAL.select("WHERE device_id = $1::text"), REFUSAL.of)


class SqlRefusalStore(SqlNodeMessageStore):
    """Base of every engine's domain.device_refusal.RefusalStore."""

    async def keep_refusals(self, refusals: Sequence[DeviceRefusal]) -> None:
        # In one order, so that two processes do not wait for each other's rows.
        await self._run_steps([(KEEP, sorted(map(REFUSAL.row, refusals)))])

    async def refusal_of(self, device_id: str) -> DeviceRefusal | None:
        return await self._one(LAST, device_id)
