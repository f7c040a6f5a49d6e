"""Enrollment over Secure Transport (RFC 7030 with RFC 8951): every operation but fullcmc."""

from fleet.servers.est.server import build_est_server

__all__ = ["build_est_server"]
