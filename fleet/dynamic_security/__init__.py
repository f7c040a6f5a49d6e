"""Devices as clients and roles of a mosquitto of somebody else's, by its dynamic-security plugin."""
