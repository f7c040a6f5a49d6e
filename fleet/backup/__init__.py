"""A home as one file, and back: taken while it is served, checked, restored without bringing a revoked device back."""
