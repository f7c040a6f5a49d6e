"""The factory station: one board on a serial port becomes a device of the fleet."""
