"""Every server that can be measured, by name. A new one is a module beside these and a line here."""

from hw_bench.peers import mosquitto, nginx, ours
from hw_bench.peers.contract import Peer

PEERS: dict[str, Peer] = {peer.name: peer for peer in (ours.LISTENER, nginx.PEER, mosquitto.PEER)}
