"""What a device may use: sizes, rates, filters, bytes in flight, delays, and not reading one that has too much."""
