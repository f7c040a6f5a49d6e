"""Messages between nodes over SQL: the reads and the statements of a domain.node_messages.NodeMessageStore."""

from datetime import datetime

from fleet.domain.node_messages import NodeMessage
from fleet.storage.device_reports import SqlReportStore
from fleet.storage.mapping import micros, table_of
from fleet.storage.queries import Query, bounded
from fleet.storage.statement import Statement

MESSAGE = table_of("node_message", NodeMessage)

LEAVE = Statement(MESSAGE.insert(""))
ANSWER = Statement("UPDATE node_message SET answer = $2::text, payload = $3::bytea WHERE id = $1::text")
DROP = Statement("DELETE FROM node_message WHERE id = $1::text")
ANSWERED = Query(MESSAGE.select("WHERE id = $1::text"), MESSAGE.of)


class SqlNodeMessageStore(SqlReportStore):
    """Base of every engine's domain.node_messages.NodeMessageStore."""

    message_clock = "{now}"
    """What tells the time in microseconds, where `{now}` is the caller's: clocks of two nodes may differ by more than a
    message lasts.
    """

    def _clock(self, parameter: int) -> str:
        return self.message_clock.format(now=f"${parameter}::bigint")

    async def leave_message(self, message: NodeMessage, now: datetime) -> None:
        lasts = Statement(
            f"UPDATE node_message SET expires_at = {self._clock(2)} + $3::bigint - $2::bigint WHERE id = $1::text"
        )
        left = [(message.id, micros(now), micros(message.expires_at))]
        await self._run_steps([(LEAVE, [MESSAGE.row(message)]), (lasts, left)])

    async def messages_for(self, node: str, now: datetime, limit: int) -> list[NodeMessage]:
        where = f"WHERE node = $1::text AND answer = '' AND expires_at >= {self._clock(2)}"
        query = Query(MESSAGE.select(f"{where} ORDER BY id LIMIT {bounded(limit)}"), MESSAGE.of)
        return await self._scan(query, node, micros(now))

    async def answer_message(self, message_id: str, answer: str) -> None:
        await self._run_steps([(ANSWER, [(message_id, answer, b"")])])

    async def answer_to(self, message_id: str) -> str:
        found = await self._one(ANSWERED, message_id)
        return "" if found is None else found.answer

    async def drop_message(self, message_id: str) -> None:
        await self._run_steps([(DROP, [(message_id,)])])

    async def drop_expired_messages(self, now: datetime) -> None:
        expired = Statement(f"DELETE FROM node_message WHERE expires_at < {self._clock(1)}")
        await self._run_steps([(expired, [(micros(now),)])])
