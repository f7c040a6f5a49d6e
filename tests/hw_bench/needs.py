"""What a test of the bench needs on the machine; without it, it is left out by name."""

import pytest

from hw_bench.peers import mosquitto, postgres

NEEDS_POSTGRES = pytest.mark.skipif(postgres.missing() is not None, reason="postgresql: not installed")
NEEDS_MOSQUITTO = pytest.mark.skipif(mosquitto.missing() is not None, reason="mosquitto is not installed")
