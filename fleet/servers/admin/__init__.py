"""The admin API: health for anybody, who-am-I for the admitted, status for stations; nothing else."""

from fleet.servers.admin.server import AdminServer, build_admin_server

__all__ = ["AdminServer", "build_admin_server"]
