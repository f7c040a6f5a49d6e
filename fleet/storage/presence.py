"""Presence over SQL: the reads and the statements of a domain.ports.PresenceStore."""

from collections.abc import Sequence
from typing import Any

from fleet.domain.presence import (
    ENDED_ROWS_MAX,
    EVERY_SESSION,
    RUN_KEPT,
    ClientSession,
    GatewayRun,
    SessionFilter,
    SessionFound,
)
from fleet.storage.crls import SqlCrlStore
from fleet.storage.mapping import micros, moment, table_of
from fleet.storage.queries import Parameters, Query, bounded
from fleet.storage.statement import Statement

SESSION = table_of("mqtt_session", ClientSession)
RUN = table_of("gateway_run", GatewayRun)

_OTHERS = ("device_id", "client_id")
_SET = ", ".join(f"{column} = excluded.{column}" for column in SESSION.columns if column not in _OTHERS)
_RUN_IS_OVER = "NOT EXISTS (SELECT 1 FROM gateway_run WHERE gateway_run.run = mqtt_session.run)"
# Batches of two workers may come in either order. A session that is open replaces another that has ended all the same,
# and what its run has left: the clocks of two nodes differ. It does not replace its own end.
NOTE_SESSION = Statement(
    SESSION.insert(f"""
    ON CONFLICT (device_id, client_id) DO UPDATE SET {_SET}
    WHERE mqtt_session.connected_at < excluded.connected_at
        OR mqtt_session.connected_at = excluded.connected_at
        AND (mqtt_session.ended_at IS NULL OR excluded.ended_at IS NOT NULL)
        OR mqtt_session.connected_at > excluded.connected_at AND excluded.ended_at IS NULL
        AND (mqtt_session.ended_at IS NOT NULL OR {_RUN_IS_OVER})""")
)
_IS_OVER = f"(ended_at IS NOT NULL OR {_RUN_IS_OVER})"
DROP_FORMER = Statement(f"""
    DELETE FROM mqtt_session WHERE device_id = $1::text AND {_IS_OVER} AND client_id NOT IN (
        SELECT client_id FROM mqtt_session WHERE device_id = $1::text AND {_IS_OVER}
        ORDER BY coalesce(ended_at, seen_at) DESC LIMIT {ENDED_ROWS_MAX})""")
SEE_RUN = Statement(RUN.insert(" ON CONFLICT (run) DO UPDATE SET seen_at = excluded.seen_at"))
END_FORMER = Statement(
    "DELETE FROM gateway_run WHERE node = $1::text AND worker = $2::bigint AND run <> $3::text OR seen_at < $4::bigint"
)
END_RUN = Statement("DELETE FROM gateway_run WHERE run = $1::text")
END_WORKER = Statement("DELETE FROM gateway_run WHERE node = $1::text AND worker = $2::bigint")
END_NODE = Statement("DELETE FROM gateway_run WHERE node = $1::text")


def _found(row: Any) -> SessionFound:
    *session, run_seen_at = row
    return SessionFound(SESSION.of(tuple(session)), None if run_seen_at is None else moment(run_seen_at))


def list_sessions(where: SessionFilter, after: tuple[str, str], limit: int) -> tuple[Query[SessionFound], list[Any]]:
    """The query that lists sessions, and its parameters."""
    parameters = Parameters()
    mark = parameters.mark
    terms = [f"(s.device_id, s.client_id) > ({mark(after[0])}, {mark(after[1])})"]
    if where.device_id is not None:
        terms.append(f"s.device_id = {mark(where.device_id)}")
    if where.model is not None:
        terms.append(f"EXISTS (SELECT 1 FROM device d WHERE d.id = s.device_id AND d.model = {mark(where.model)})")
    if where.node is not None:
        terms.append(f"s.node = {mark(where.node)}")
    if where.is_open is not None:
        is_open = "s.ended_at IS NULL AND r.run IS NOT NULL"
        terms.append(is_open if where.is_open else f"NOT ({is_open})")
    sql = f"""
        SELECT {SESSION.listed("s")}, r.seen_at FROM mqtt_session s LEFT JOIN gateway_run r ON r.run = s.run
        WHERE {" AND ".join(terms)} ORDER BY s.device_id, s.client_id LIMIT {bounded(limit)}"""
    return Query(sql, _found), parameters


class SqlPresenceStore(SqlCrlStore):
    """Base of every engine's domain.ports.PresenceStore."""

    async def begin_run(self, run: GatewayRun) -> None:
        kept_from = micros(run.seen_at - RUN_KEPT)
        former = (END_FORMER, [(run.node, run.worker, run.run, kept_from)])
        await self._run_steps((former, (SEE_RUN, [RUN.row(run)])))

    async def end_runs(self, node: str, run: str | None = None, *, worker: int | None = None) -> None:
        if run is not None:
            await self._run_steps([(END_RUN, [(run,)])])
        else:
            await self._run_steps([(END_NODE, [(node,)]) if worker is None else (END_WORKER, [(node, worker)])])

    async def note_sessions(self, sessions: Sequence[ClientSession], run: GatewayRun) -> None:
        # In one order, so that two processes do not wait for each other's rows.
        rows = sorted(map(SESSION.row, sessions))
        named = sorted({each.device_id for each in sessions if each.client_id != each.device_id})
        await self._run_steps(
            ((SEE_RUN, [RUN.row(run)]), (NOTE_SESSION, rows), (DROP_FORMER, [(device_id,) for device_id in named]))
        )

    async def sessions(
        self, where: SessionFilter = EVERY_SESSION, *, after: tuple[str, str] = ("", ""), limit: int = 1000
    ) -> list[SessionFound]:
        query, parameters = list_sessions(where, after, limit)
        return await self._scan(query, *parameters)
