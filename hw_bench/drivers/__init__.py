"""Load generators: client processes on a separate core, controlled over pipes."""
