"""A whole fleet on one machine, step by step: each step is what a person would do, with the programs they would use."""
