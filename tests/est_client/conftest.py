"""The CA and the EST server of the agent's tests."""

from tests.device_agent.conftest import (
    authority,
    broker,
    device,
    est,
    new_device,
    shared_broker,
    shared_est,
    subscriber,
)

__all__ = ["authority", "broker", "device", "est", "new_device", "shared_broker", "shared_est", "subscriber"]
