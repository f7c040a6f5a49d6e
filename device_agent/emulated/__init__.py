"""A board on a pseudo-terminal, for trying the factory without hardware. Loaded by `device-agent emulate` alone."""
