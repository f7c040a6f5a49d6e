"""Another process promotes a certificate while the agent renews and is refused: the agent takes it at once."""

import io
from pathlib import Path
from unittest import mock

import pytest

from device_agent import enroll_child
from device_agent.config.agent_config import read_config
from device_agent.core import Link
from device_agent.enrollment import rotation
from device_agent.enrollment.enrollment import EnrollmentJob, Outcome
from device_agent.log.event_log import EventLog
from device_agent.loop.executor import Executor
from device_agent.store.identity_store import IdentityStore
from tests.device_agent.fleet_parts import Authority
from tests.device_agent.store import crash_life
from tests.device_agent.store.crash_life import NOW, TOKEN, ModelServer, in_process


class Agent:
    """A device whose only certificate has been revoked, with an agent that waits for long after the refusal."""

    def __init__(self, home: Path, server: ModelServer) -> None:
        self.home, self.server = home, server
        crash_life.new_home(home, server.authority)
        crash_life.enroll(home)
        server.change(ended=frozenset({crash_life.fingerprint_of(server.registry.issued[0])}))
        server.change(token_spent_for=None)
        self.log = io.StringIO()
        self.seconds = 0.0
        self.executor = Executor(
            read_config(home), EventLog(stream=self.log), lambda: None, lambda: NOW, lambda: self.seconds, lambda: 0.5
        )
        self.executor.identities.refresh()

    def turn(self) -> float:
        wait = self.executor.decide_until_wait()
        self.executor.take_events()
        return wait

    def another_enrolls(self) -> None:
        """What `device-agent enroll` does, up to the message to the agent."""
        assert enroll_child.outcome_of(EnrollmentJob(self.home, "enroll", TOKEN), NOW).ok
        store = IdentityStore(self.home)
        candidate = store.candidate()
        assert candidate is not None
        store.promote(candidate)


class Child:
    """Ends once the test has `ended` it: it has found the certificate that another process had stored."""

    ended = False

    def __init__(self, _: EnrollmentJob) -> None:
        pass

    def read(self) -> Outcome | None:
        return Outcome(ok=True, slot="slot-b") if self.ended else None

    def kill(self) -> Outcome:
        return Outcome(ok=False, message="killed")


@pytest.mark.parametrize("noticed_before", [False, True])
def test_a_renewal_that_finds_what_enroll_has_promoted_has_not_failed(
    tmp_path: Path, authority: Authority, noticed_before: bool
) -> None:
    """The child waits for the lock that `enroll` holds. The agent may see the new certificate before its outcome."""
    server = ModelServer(authority)
    with in_process(server), mock.patch.object(rotation, "EnrollmentProcess", Child):
        agent = Agent(tmp_path / "home", server)
        agent.turn()
        assert "cause=refused" in agent.log.getvalue()
        agent.executor.force_renewal(None)
        agent.turn()
        child = agent.executor.rotation.child.process
        assert isinstance(child, Child)
        agent.another_enrolls()
        if noticed_before:
            agent.executor.look_for_candidate()
            agent.turn()
        child.ended = True
        for _ in range(3):
            agent.turn()  # no time has passed
        assert agent.executor.connection.state is Link.UP
    log = agent.log.getvalue()
    assert "renewal-failed" not in log
    assert agent.executor.last_error == ""
    assert " connected slot=slot-b" in log
