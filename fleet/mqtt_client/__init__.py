"""A connection to an MQTT broker as its client, under asyncio."""
