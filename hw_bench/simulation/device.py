"""A simulated device: the agent's own decisions, rotation, schedule, clock and store, in virtual time.

Replaced are only what waits for others: the connection over TLS (`ModelLink`) and the child process that enrolls
(`ModelProcess`), which ask the modelled fleet. The home is a real folder.
"""

import io
import math
from datetime import datetime, timedelta
from pathlib import Path
from random import Random

from device_agent.apps.inbound import Inbound
from device_agent.config.agent_config import AgentConfig
from device_agent.core import Link, Phase, Setback
from device_agent.enrollment.enrollment import EnrollmentJob, EnrollmentProcess, Outcome
from device_agent.link.clock import DeviceClock, Uptime
from device_agent.link.connection import Connection
from device_agent.link.mqtt_link import Connected, LinkEvent, Lost, MqttLink
from device_agent.log.event_log import EventLog
from device_agent.log.journal import Priority
from device_agent.loop.executor import Executor
from device_agent.store.identity_store import Identity, IdentityStore
from fleet.est_client.server_checks import ServerTime
from fleet.est_client.validity import clock_is_credible
from fleet.servers.est.server import RENEWAL_INFO_SECONDS
from hw_bench.simulation.authority import NEW_ROOT, OLD_ROOT, Authority, Refusal

CONNECT_SECONDS_MAX = 2.0  # a handshake over a slow link
CHILD_SECONDS_MAX = 20.0  # key, request and store on a small board
WAKE_SECONDS_MAX = 24 * 3600.0
UNIX_EPOCH = datetime.fromisoformat("1970-01-01T00:00:00+00:00")


class World:
    """Virtual time in seconds since the start, for all devices."""

    def __init__(self, authority: Authority) -> None:
        self.authority = authority
        self.now = 0.0


class Board:
    """What stays when the agent's process ends: the home, the clock, the trust anchors, and chance."""

    def __init__(self, name: str, home: Path, world: World, random: Random) -> None:
        self.name, self.home, self.world, self.random = name, home, world, random
        self.clock_ahead = timedelta()
        """Of the true time."""
        self.boots = 0
        self.booted_at = 0.0
        self.roots = {OLD_ROOT}

    def system_time(self) -> datetime:
        return self.world.authority.time(self.world.now) + self.clock_ahead

    def forget_time(self) -> None:
        """As a board without a battery starts."""
        self.clock_ahead = UNIX_EPOCH - self.world.authority.time(self.world.now)

    def uptime(self) -> Uptime:
        return Uptime(f"{self.name}-{self.boots}", self.world.now - self.booted_at)

    def device_clock(self) -> DeviceClock:
        return DeviceClock(self.home, self.system_time, self.uptime)

    def trusts_server(self, judge: datetime | None) -> bool:
        """Whether the servers' chain verifies; dates by `judge`, if there is one."""
        authority = self.world.authority
        begin, end = authority.certificate_of_server(self.world.now)
        return bool(self.roots & authority.roots(self.world.now)) and (judge is None or begin <= judge <= end)


class ModelLink(MqttLink):
    """One connection to the modelled gateway."""

    def __init__(self, board: Board, identity: Identity, judge: datetime | None) -> None:
        self._board = board
        self._fingerprint = identity.certificate.fingerprint
        self._judge = judge
        self._found: list[LinkEvent] = []
        self._up = self._ended = False
        self.answer_at = math.inf
        """When the attempt succeeds or fails."""

    def open(self) -> None:
        board = self._board
        self.answer_at = board.world.now + 0.05 + CONNECT_SECONDS_MAX * board.random.random()

    def tick(self) -> None:
        now, authority = self._board.world.now, self._board.world.authority
        if self._ended or (not self._up and now < self.answer_at):
            return
        setback = authority.setback(self._board.name, self._fingerprint, now)
        if setback is not Setback.NETWORK and not self._up and not self._board.trusts_server(self._judge):
            setback = Setback.UNTRUSTED
        if setback is not None:
            self._ended = True
            authority.refused[self._board.name] += setback.is_refusal
            self._found.append(Lost(setback, setback.value, answered=setback.is_refusal, reached=self._up))
        elif not self._up:
            self._up, self.answer_at = True, math.inf
            authority.begins(self._board.name, self._fingerprint)
            self._found.append(Connected(True, 65535, None))

    def events(self) -> list[LinkEvent]:
        found, self._found = self._found, []
        return found

    def close(self) -> None:
        self._ended, self.answer_at = True, math.inf

    @property
    def wants_write(self) -> bool:
        return False


class ModelConnection(Connection):
    """A connection whose links are modelled."""

    board: Board

    def new_link(self, identity: Identity, check_time: bool, at: datetime | None) -> MqttLink:
        self._known.add(identity)
        return ModelLink(self.board, identity, self.board.system_time() if check_time else at)

    @property
    def answer_at(self) -> float:
        return min((link.answer_at for link in self.links if isinstance(link, ModelLink)), default=math.inf)


class ModelProcess(EnrollmentProcess):
    """The child that enrolls, as the modelled EST server sees it."""

    def __init__(self, board: Board, job: EnrollmentJob) -> None:
        self._board, self._job = board, job
        self.ends_at = board.world.now + 1.0 + CHILD_SECONDS_MAX * board.random.random()
        self._key = self._prepared() if job.operation == "reenroll" else b""

    def read(self) -> Outcome | None:
        return self._outcome() if self._board.world.now >= self.ends_at else None

    def kill(self) -> Outcome:
        """As by a power loss: the request may have reached the server, and its answer is lost."""
        if self._key and self._board.random.random() < 0.5 and self._reachable() == "":
            authority, current = self._board.world.authority, self._store.current()
            if current is not None:
                authority.renew(self._board.name, current.certificate.fingerprint, self._key, self._board.world.now)
        return Outcome(ok=False, message="The enrollment took too long and was stopped.")

    @property
    def _store(self) -> IdentityStore:
        return IdentityStore(self._board.home)

    def _prepared(self) -> bytes:
        """The key of the next identity: that of an interrupted renewal, if there is one."""
        store = self._store
        slot = store.spare_slot()
        if (unfinished := store.unfinished_key(slot)) is not None:
            return unfinished
        key = self._board.random.randbytes(32)
        store.clear(slot)
        store.write_key(slot, key)
        return key

    def _reachable(self) -> str:
        """Why the EST server does not serve this device; "" if it does. Its time corrects a clock that stands in the
        way, as in `est_access`."""
        board, authority = self._board, self._board.world.authority
        if not authority.answers(board.world.now, est=True):
            return "The server cannot be reached."
        clock = board.device_clock()
        current = self._store.current()
        clock.own_begin = current.lifetime.not_before if current else clock.own_begin
        said = ServerTime(authority.time(board.world.now), *authority.certificate_of_server(board.world.now))
        by_system, at = clock.judges_dates()
        if not board.trusts_server(board.system_time() if by_system else at):
            if not board.trusts_server(None) or not clock.learn(said):
                return "The server's certificate is not trusted."
            by_system, at = clock.judges_dates()
            if not board.trusts_server(board.system_time() if by_system else at):
                return "The server's certificate is not trusted."
        clock.learn(said)  # of a clock that is not set, too
        return ""

    def _outcome(self) -> Outcome:
        board, store = self._board, self._store
        if problem := self._reachable():
            return Outcome(ok=False, message=problem)
        if self._job.operation == "window":
            self._board.world.authority.asked[self._board.name] += 1
            return Outcome(ok=True, slot=self._job.replaces, retry_after_seconds=RENEWAL_INFO_SECONDS)
        current = store.current()
        if current is None:
            return Outcome(ok=False, message="There is no certificate to renew.")
        answer = board.world.authority.renew(board.name, current.certificate.fingerprint, self._key, board.world.now)
        slot = store.spare_slot()
        if isinstance(answer, Refusal):
            if answer.refused:
                store.clear(slot)
            return Outcome(
                ok=False,
                message=answer.message,
                refused=answer.refused,
                ended=answer.ended,
                retry_after_seconds=answer.retry_after_seconds,
            )
        if board.world.now >= board.world.authority.rules.new_root_at:
            board.roots.add(NEW_ROOT)
        store.complete(slot, answer.fingerprint.encode(), answer)
        return Outcome(ok=True, slot=slot)


class SimulatedAgent(Executor):
    """The agent of `board`, from one boot to the next."""

    connection: ModelConnection

    def __init__(self, config: AgentConfig, board: Board) -> None:
        def monotonic() -> float:
            return board.world.now

        log = EventLog(board.system_time, io.StringIO(), least=Priority.ERROR)
        super().__init__(config, log, lambda: None, board.system_time, monotonic, board.random.random)
        self._board = board
        self.clock = board.device_clock()
        self.connection = ModelConnection(config, lambda: None, monotonic, board.random.random)
        self.connection.board = board
        self.inbound = Inbound(self.connection, monotonic, self.spool.inbox)
        self.rotation.child.new_process = self.schedule.child.new_process = lambda job: ModelProcess(board, job)

    @property
    def is_connected(self) -> bool:
        return self.connection.state is Link.UP

    def cut_off(self) -> None:
        """The board has lost its power."""
        self.rotation.child.stop()

    def turn(self) -> float:
        """Do what is due, and return the second of the world at which something is due again."""
        self.take_events()
        self.decide_until_wait()
        now = self._board.world.now
        return min((at for at in self._due() if at > now), default=now + WAKE_SECONDS_MAX)

    def _due(self) -> list[float]:
        # All that a decision depends on: in between, another turn of the agent's loop changes nothing.
        now, connection, rotation = self._board.world.now, self.connection, self.rotation
        times = [now + WAKE_SECONDS_MAX, connection.answer_at, self.schedule.ask_at]
        children = (rotation.child.process, self.schedule.child.process)
        times += [one.ends_at for one in children if isinstance(one, ModelProcess)]
        times += [rotation.renew_at, rotation.prove_at, rotation.promote_at, rotation.quiescing_until]
        times += [connection.connect_at, connection.connecting_until]
        wall = self.clock.now()
        for identity in (self.current, self.candidate):
            if identity is not None and clock_is_credible(wall, identity.lifetime):
                moments = (identity.lifetime.not_after, self.schedule.due_at(identity))
                times += [now + (moment - wall).total_seconds() + 0.001 for moment in moments]
        if self.phase is not Phase.SERVING:
            times.append(now + 1)
        return times
