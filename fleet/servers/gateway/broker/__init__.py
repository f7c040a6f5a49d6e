"""The broker behind the gateway: started by us or reached at an address, probed, restarted, visited."""
