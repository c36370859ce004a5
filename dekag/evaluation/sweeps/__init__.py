"""Sweeps: one way to define, run and write down a grid of measurements."""
