"""Measured claims: a correctness gate, then time; one result row per variant in `benchmarks/results/`."""
