"""Demo: a whole fleet on one machine, step by step, using the same programs as an operator would."""
