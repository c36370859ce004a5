"""Runs the whole chain on one machine: Redis and the five services as child processes."""
