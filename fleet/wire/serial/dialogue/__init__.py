"""Both sides of the serial dialogue, without I/O: octets and the time go in, octets and events come out."""
