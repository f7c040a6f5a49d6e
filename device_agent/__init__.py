"""The agent of one device: its key and certificate, and its MQTT connection. See README.md."""
