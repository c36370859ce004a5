"""How many hostile inputs are tried: a few, or with ``--hypothesis-profile=thorough`` thousands."""

from __future__ import annotations

from hypothesis import HealthCheck, Phase, settings

settings.register_profile(
    "thorough",  # another draw with each run; a failure prints what draws it again
    deadline=None,
    database=None,
    phases=[Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
    print_blob=True,
)
settings.register_profile(
    "quick",  # the same few examples in each run, for the ordinary tests
    settings.get_profile("thorough"),
    derandomize=True,
)


def is_thorough() -> bool:
    """Whether this run was asked to be thorough."""
    return settings.get_current_profile_name().startswith("thorough")  # with or without another verbosity


def examples(*, quick: int, thorough: int) -> settings:
    """Settings of a test that tries so many inputs in a quick run and in a thorough one.

    Other tests of a quick run keep Hypothesis's own profile: none is loaded.
    """
    if is_thorough():
        return settings(max_examples=thorough)
    return settings(settings.get_profile("quick"), max_examples=quick)
