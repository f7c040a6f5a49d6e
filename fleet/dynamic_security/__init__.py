"""Devices as clients and roles of an external mosquitto, by its dynamic-security plugin."""
