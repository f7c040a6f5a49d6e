"""The C device, built once."""

from pathlib import Path

import pytest

from tests.device_agent.embedded.building import device_program, needed


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`fleet-device` (host/main.c)."""
    needed()
    return device_program(tmp_path_factory.mktemp("device"))
