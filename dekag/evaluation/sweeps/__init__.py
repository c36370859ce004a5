"""Sweeps: grids of deliveries, topics, channels, SNRs and rates, defined in YAML."""
