"""What listens: each server translates bytes to a service call, and its answer back to bytes. No rule is made here."""
