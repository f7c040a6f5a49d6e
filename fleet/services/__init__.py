"""What the fleet does, one use case a function: read the facts, ask the domain, commit one Change."""
