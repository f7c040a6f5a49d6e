"""How long the agent waits between two attempts to connect: full jitter, by what the server has said. No I/O."""

from device_agent.config.agent_config import AgentConfig
from device_agent.core import Role, Setback
from device_agent.renewal import ENDED_SECONDS_MAX, Backoff

NETWORK_SECONDS_MIN = 2.0  # between a failure and an attempt because the network has changed: a link may flap


class Delays:
    def __init__(self, config: AgentConfig) -> None:
        base, cap, self._refused_seconds = self.settings = (
            config.retry_base_seconds,
            config.retry_cap_seconds,
            config.refused_retry_seconds,
        )
        self.usual = Backoff(base, cap)
        self.refused = Backoff(base, cap, self._refused_seconds)
        self.ended = Backoff(base, ENDED_SECONDS_MAX, self._refused_seconds)

    def after(self, setback: Setback, role: Role | None) -> Backoff:
        """After a refused candidate the current identity is tried without a long delay: only both make a refusal."""
        if role is Role.CURRENT and setback.is_refusal:
            return self.ended if setback is Setback.ENDED else self.refused
        return self.usual

    def least_if_network_changes(self, setback: Setback) -> float | None:
        """From the failure to an attempt because the network has changed; None: that has no part in it."""
        if setback is Setback.REFUSED:
            return None
        # An untrusted server may be a captive portal. What is refused permanently waits for hours otherwise.
        return self._refused_seconds if setback is Setback.ENDED else NETWORK_SECONDS_MIN
