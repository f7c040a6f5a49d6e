"""Factory: provisioning of boards over a serial line, and tools for firmware authors. See README.md."""
