"""What a test of the bench needs on the machine; without it, it is left out by name."""

import pytest

from hw_bench.peers import mosquitto, postgres, step_ca

NEEDS_POSTGRES = pytest.mark.skipif(postgres.missing() is not None, reason="postgresql: not installed")
NEEDS_MOSQUITTO = pytest.mark.skipif(mosquitto.missing() is not None, reason="mosquitto is not installed")
NEEDS_STEP_CA = pytest.mark.skipif(step_ca.missing() is not None, reason="step-ca is not installed")
