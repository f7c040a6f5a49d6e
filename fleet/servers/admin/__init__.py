"""The admin API: who am I, what is there, change it, and watch it change; JSON over HTTPS."""

from fleet.servers.admin.server import AdminServer, build_admin_server

__all__ = ["AdminServer", "build_admin_server"]
