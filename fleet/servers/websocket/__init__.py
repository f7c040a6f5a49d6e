"""MQTT over WebSocket, below the gateway's sessions."""

MQTT_PATH = "/mqtt"
