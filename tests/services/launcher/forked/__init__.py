"""A service for tests of the fork server."""
