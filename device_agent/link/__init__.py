"""The link to the fleet: one MQTT connection over mutual TLS, its backoff, and the one that proves a candidate."""
