"""Upper bounds of MQTT limits: of `[mqtt]` in fleet.toml and of the models, which may lower two of its limits."""

FILTERS_PER_DEVICE_MAX = 100_000
PACKET_SIZE_MAX = 67_108_864
"""Upper bound of the setting; its default is 16 MiB."""
BROKER_MEMORY_MAX = 268_435_456
"""Bytes of our own mosquitto; what it holds is written to disk on SIGTERM, in half of its STOP_SECONDS_MAX."""
