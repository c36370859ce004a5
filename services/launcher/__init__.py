"""Runs the whole chain on one machine: Redis and the services as child processes."""
