"""How Hypothesis is set for tests that talk to services: no time limits of its own, nothing kept on disk."""

from __future__ import annotations

from hypothesis import HealthCheck, Phase, settings

FUZZ = settings(
    deadline=None,
    database=None,
    phases=[Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
    print_blob=True,
)
"""Another draw with each run; a failure prints what draws it again."""

QUICK = settings(FUZZ, max_examples=30, derandomize=True)
"""The same few examples in each run, for the ordinary tests."""
