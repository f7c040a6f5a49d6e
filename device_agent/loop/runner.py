"""The long-lived agent: an event loop that polls, and runs the executor at each turn.

Single-threaded, except for the blocking part of a connect. Enrollment runs in a child process.
"""

import os
import select
import shlex
import time
from collections.abc import Callable

from device_agent.apps.access import socket_gid
from device_agent.apps.control_server import ControlServer
from device_agent.config.agent_config import AgentConfig
from device_agent.core import Link
from device_agent.errors import AgentError, NotEnrolled
from device_agent.link.network_watch import NetworkWatch
from device_agent.log.event_log import Clock, EventLog, system_clock
from device_agent.loop.executor import Executor
from device_agent.loop.reloading import Settings, put_in_force
from device_agent.managed.management import Management
from device_agent.signals import RELOAD_SIGNAL, RENEW_SIGNAL, STOP_SIGNALS, Waker
from device_agent.spool.publisher import PublishInput, take_lines
from device_agent.store.atomic_files import held_lock
from device_agent.store.locks import AGENT_LOCK
from device_agent.systemd.manager import ServiceEvent, ServiceManager
from fleet.est_client.errors import ClientError

DRAIN_SECONDS_MAX = 4.0  # for acknowledgements, after SIGTERM
LOOP_SECONDS_MAX = 5.0  # between two checks of the keep-alive


def random_share() -> float:
    """A number in [0, 1)."""
    return int.from_bytes(os.urandom(6)) / 2**48


class Runner:
    """Call `run` or `renew_once` once. `chance` draws a number in [0, 1)."""

    def __init__(
        self,
        config: AgentConfig,
        log: EventLog,
        source: PublishInput | None = None,
        *,
        clock: Clock = system_clock,
        monotonic: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random_share,
    ) -> None:
        self._config = config
        self._settings = Settings(config)
        self._log = log
        self._input = source
        self._monotonic = monotonic
        self._wakeup = Waker()
        self._network = NetworkWatch()
        self._agent = Executor(config, log, self._wakeup.wake, clock, monotonic, chance)
        self._management = Management(self._agent, log)
        self._stop_by: float | None = None
        self._manager = ServiceManager()
        log.listeners.append(self._manager.heard)

    def run(self) -> int:
        """Serve until SIGTERM or SIGINT, or the end of the input. 0 if every accepted message was delivered, or is kept
        in the spool; else 1.

        Raises: Busy if an agent runs in this home already; NotEnrolled; OSError.
        """
        if self._config.managed:
            self._management.start()
        self._serve(self._is_finished)
        outbox = self._agent.outbox
        self._log.event("stopped", delivered=outbox.delivered, undelivered=len(outbox), refused=outbox.refused)
        in_vain = self._input is not None and self._input.lines.refused and not outbox.delivered
        return 1 if outbox.unsaved or outbox.refused or in_vain else 0

    def renew_once(self) -> None:
        """Renew, prove the new certificate by a connection, and return. Messages are left to `run`.

        Raises: AgentError if that failed, with the working certificate unchanged; Busy; NotEnrolled; OSError.
        """
        outcome: list[tuple[str, str]] = []
        self._agent.carries_messages = False
        self._agent.deployments.hooks = ()  # for the caller to run: none is cut off by our end
        self._agent.force_renewal(lambda message, advice: outcome.append((message, advice)))
        self._serve(lambda: bool(outcome) or self._stop_by is not None)
        message, advice = outcome[0]
        if message:
            raise AgentError(message, advice)

    def _serve(self, is_finished: Callable[[], bool]) -> None:
        lock = held_lock(self._config.home / AGENT_LOCK, "An agent is already running in this home.")
        with lock, self._wakeup.catching_signals():
            self._agent.identities.refresh()
            if not self._agent.can_start:
                raise NotEnrolled(
                    "This device has no certificate yet.",
                    f"Run: device-agent --home {shlex.quote(str(self._config.home))} enroll.",
                )
            self._agent.spool.open()
            control = ControlServer(
                self._config.home,
                self._agent.handlers.handlers(),
                self._agent.handlers.gone,
                socket_gid(self._config.apps),
                self._monotonic,
            )
            planned = self._agent.schedule.planned(self._agent.current)
            self._log.event(ServiceEvent.STARTED, device=self._agent.device_id, pid=os.getpid(), **planned)
            try:
                while not is_finished():
                    seconds = self._agent.decide_until_wait()
                    if is_finished():
                        break  # by a decision
                    self._turn(control, self._manager.turn(seconds))
            finally:
                self._management.stop()
                self._agent.close()
                control.close()
                self._wakeup.close()
                self._network.close()

    def _turn(self, control: ControlServer, seconds: float) -> None:
        if self._input and self._stop_by is None:
            take_lines(self._input, self._agent.outbox, self._agent.device_id, self._log)
        self._agent.publish()
        self._management.tick()
        ready = self._poll(control, min(seconds, self._agent.handlers.seconds_left()))
        for link in self._agent.connection.links:
            if link.socket is not None and (events := ready.get(link.socket.fileno())):
                link.handle_io(bool(events & ~select.POLLOUT), bool(events & select.POLLOUT))
        if self._wakeup.descriptor in ready:
            self._wakeup.clear()
        self._take_signals()
        if self._input and self._input.lines.descriptor in ready:
            self._input.lines.read()
        if self._network.socket is not None and self._network.socket.fileno() in ready:
            self._agent.network_changed(self._network.read())
        control.handle(ready)
        self._agent.take_events()

    def _poll(self, control: ControlServer, seconds: float) -> dict[int, int]:
        # A new poll object each turn: with ten descriptors it costs nothing, and none can be stale.
        poll = select.poll()
        watched = control.watched() | {self._wakeup.descriptor: select.POLLIN}
        for link in self._agent.connection.links:
            if link.socket is not None:
                watched[link.socket.fileno()] = select.POLLIN | (select.POLLOUT if link.wants_write else 0)
        children = (self._agent.rotation.child, self._agent.schedule.child, self._management.child)
        for process in (*(child.process for child in children), self._agent.deployments.process):
            if process is not None:
                watched[process.fileno()] = select.POLLIN
        if self._agent.rotation.child.running:
            seconds = min(seconds, 1.0)
        if self._network.socket is not None:
            watched[self._network.socket.fileno()] = select.POLLIN
        source = self._input
        waits = source is not None and (source.returned or self._agent.outbox.is_full)
        if source and self._stop_by is None and not source.lines.at_end and not waits:
            watched[source.lines.descriptor] = select.POLLIN
        for descriptor, events in watched.items():
            poll.register(descriptor, events)
        return dict(poll.poll(min(seconds, LOOP_SECONDS_MAX) * 1000 + 1))

    # Signals and shutdown

    def _take_signals(self) -> None:
        signals = self._wakeup.signals()
        if RENEW_SIGNAL in signals:
            self._agent.force_renewal(None)
        if RELOAD_SIGNAL in signals and self._stop_by is None:
            self._reload()
        if signals & STOP_SIGNALS and self._stop_by is None:
            self._stop_by = self._monotonic() + DRAIN_SECONDS_MAX
            self._agent.drain()
            self._log.event(ServiceEvent.STOPPING, undelivered=len(self._agent.outbox))

    def _reload(self) -> None:
        self._log.event(ServiceEvent.RELOADING)
        try:
            reconnects = self._settings.reload()
        except (ClientError, OSError) as error:
            self._log.event(ServiceEvent.RELOAD_FAILED, reason=error)
            return
        put_in_force(self._settings.config, self._agent)
        if reconnects:
            self._agent.reconnect("its settings were changed")
        else:
            self._agent.connection.retry_now()  # a person has asked: it need not wait any longer
        self._log.event(ServiceEvent.RELOADED, reconnects=reconnects)

    def _is_finished(self) -> bool:
        agent, source = self._agent, self._input
        if self._stop_by is not None:
            return agent.is_idle or agent.connection.state is not Link.UP or self._monotonic() >= self._stop_by
        return bool(source and source.stop_at_end and source.at_end and agent.is_idle)
