"""The agent as the fleet manages it: commands on `devices/{id}/fleet/agent/+`, answered by signed reports over EST."""
