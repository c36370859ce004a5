"""Load: Locust users who ask for images as people would, and a report of what the traffic was."""
