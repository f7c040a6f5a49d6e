"""The device's identity: slots that survive a power loss, enrollment and rotation, health."""
