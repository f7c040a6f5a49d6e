"""Reports of devices over SQL: the reads and the statements of a domain.device_report.ReportStore."""

from fleet.domain.device_report import DeviceReport
from fleet.storage.mapping import table_of
from fleet.storage.presence import SqlPresenceStore
from fleet.storage.queries import Query
from fleet.storage.statement import Statement

REPORT = table_of("device_report", DeviceReport)

_SET = ", ".join(f"{column} = excluded.{column}" for column in REPORT.columns if column != "device_id")
KEEP = Statement(
    REPORT.insert(
        f" ON CONFLICT (device_id) DO UPDATE SET {_SET} WHERE device_report.received_at <= excluded.received_at"
    )
)
LAST = Query(REPORT.select("WHERE device_id = $1::text"), REPORT.of)


class SqlReportStore(SqlPresenceStore):
    """Base of every engine's domain.device_report.ReportStore."""

    async def keep_report(self, report: DeviceReport) -> None:
        await self._run_steps([(KEEP, [REPORT.row(report)])])

    async def report_of(self, device_id: str) -> DeviceReport | None:
        return await self._one(LAST, device_id)
