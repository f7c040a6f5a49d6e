"""The MQTT gateway: mutual TLS to devices, any broker behind it, every packet authorized by the registry's state."""

from fleet.servers.gateway.gateway import Gateway, GatewayOptions
from fleet.servers.gateway.limits.limits import Limits

__all__ = ["Gateway", "GatewayOptions", "Limits"]
