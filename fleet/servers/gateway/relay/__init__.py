"""Packets of a session after CONNECT: what passes, in both directions, and what is answered instead."""
