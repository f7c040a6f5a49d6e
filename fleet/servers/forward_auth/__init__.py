"""Forward authentication: a reverse proxy asks, for each HTTP request, whether the device that it saw may go on."""

from fleet.servers.forward_auth.server import ForwardAuthContext, build_forward_auth_server

__all__ = ["ForwardAuthContext", "build_forward_auth_server"]
