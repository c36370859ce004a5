"""Load: Locust users who ask for pictures as people would, and a report of what the traffic was."""
