"""What the services share: settings, server, errors, request context, cache, converters."""

from __future__ import annotations

import os


def quieten_libraries() -> None:
    """Has libraries write nothing between the JSON lines of a log, unless the environment says otherwise."""
    for name, value in {
        "TQDM_DISABLE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "DIFFUSERS_VERBOSITY": "error",
    }.items():
        os.environ.setdefault(name, value)


quieten_libraries()  # before any library is imported, since some read this on import
