"""Where the fleet's truth is kept: one contract, several engines. See README.md beside this file."""
