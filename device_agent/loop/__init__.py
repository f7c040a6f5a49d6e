"""The long-lived process: its event loop, and what it does at each turn."""
