"""Whoever doubts a number measures it here: the fleet's servers beside their peers, on this machine."""
