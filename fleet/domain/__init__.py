"""The rules of the fleet: frozen values and small named checks. Time is an argument; there is no I/O."""
