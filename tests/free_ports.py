"""Ports for those who must be told theirs before they listen: as the bench chooses them."""

from hw_bench.processes import free_port, free_ports

__all__ = ["free_port", "free_ports"]
