"""Device agent: key, certificate and MQTT connection of one device. See README.md."""
