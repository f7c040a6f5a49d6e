"""The MQTT gateway: mutual TLS on one side, any broker on the other, the registry's word on everything between."""

from fleet.servers.gateway.gateway import Gateway
from fleet.servers.gateway.limits import Limits

__all__ = ["Gateway", "Limits"]
