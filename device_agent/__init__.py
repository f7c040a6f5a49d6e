"""Device agent: key, certificate and MQTT connection of one device. See README.md.

For programs on the device: `from device_agent import Agent`, and apps/README.md.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from device_agent.apps.agent import Agent, Identity, Message, Subscription
    from device_agent.errors import (
        AgentError,
        Denied,
        NotEnrolled,
        NotRunning,
        RequestFailed,
        SendRefused,
        SubscriptionRefused,
        TimedOut,
    )

_ERRORS = (
    "AgentError",
    "Denied",
    "NotEnrolled",
    "NotRunning",
    "RequestFailed",
    "SendRefused",
    "SubscriptionRefused",
    "TimedOut",
)
__all__ = [
    "Agent",
    "AgentError",
    "Denied",
    "Identity",
    "Message",
    "NotEnrolled",
    "NotRunning",
    "RequestFailed",
    "SendRefused",
    "Subscription",
    "SubscriptionRefused",
    "TimedOut",
]


def __getattr__(name: str) -> Any:
    """The API is loaded when it is used: the agent itself does without asyncio."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name in _ERRORS:
        from device_agent import errors

        return getattr(errors, name)
    from device_agent.apps import agent

    return getattr(agent, name)
