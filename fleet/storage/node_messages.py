"""Messages between nodes over SQL: the reads and the statements of a domain.node_messages.NodeMessageStore."""

from datetime import datetime

from fleet.domain.node_messages import NodeMessage
from fleet.storage.device_reports import SqlReportStore
from fleet.storage.mapping import micros, table_of
from fleet.storage.queries import Query, bounded
from fleet.storage.statement import Statement

MESSAGE = table_of("node_message", NodeMessage)

LEAVE = Statement(MESSAGE.insert(""))
DROP_EXPIRED = Statement("DELETE FROM node_message WHERE expires_at < $1::bigint")
ANSWER = Statement("UPDATE node_message SET answer = $2::text WHERE id = $1::text")
DROP = Statement("DELETE FROM node_message WHERE id = $1::text")
ANSWERED = Query(MESSAGE.select("WHERE id = $1::text"), MESSAGE.of)


class SqlNodeMessageStore(SqlReportStore):
    """Base of every engine's domain.node_messages.NodeMessageStore."""

    async def leave_message(self, message: NodeMessage, now: datetime) -> None:
        await self._run_steps([(DROP_EXPIRED, [(micros(now),)]), (LEAVE, [MESSAGE.row(message)])])

    async def messages_for(self, node: str, now: datetime, limit: int) -> list[NodeMessage]:
        where = f"WHERE node = $1::text AND answer = '' AND expires_at >= $2::bigint ORDER BY id LIMIT {bounded(limit)}"
        return await self._scan(Query(MESSAGE.select(where), MESSAGE.of), node, micros(now))

    async def answer_message(self, message_id: str, answer: str) -> None:
        await self._run_steps([(ANSWER, [(message_id, answer)])])

    async def answer_to(self, message_id: str) -> str:
        found = await self._one(ANSWERED, message_id)
        return "" if found is None else found.answer

    async def drop_message(self, message_id: str) -> None:
        await self._run_steps([(DROP, [(message_id,)])])
