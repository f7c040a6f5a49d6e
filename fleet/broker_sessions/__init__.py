"""Sessions in an external broker: which there are, and an end for those of a device."""
