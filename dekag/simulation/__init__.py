"""Simulation of a city: many cells and users, in discrete events, without generating an image."""
