"""The name of a node: of one home on one host, among those that share a registry."""

import socket
from pathlib import Path

NODE_NAME_MAX = 512  # octets of a host name and most of any path


def node_name(home: Path) -> str:
    """Host and home, as a copy of the home on another host is another node."""
    return f"{socket.gethostname()}:{home.absolute()}"[:NODE_NAME_MAX]
