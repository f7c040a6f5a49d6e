"""Benchmarks of the fleet's servers beside comparable servers, on this machine."""
