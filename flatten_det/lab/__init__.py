"""Measuring: benchmarks, multiply-adds, evidence, ablations, the zoo; only tools import it."""
