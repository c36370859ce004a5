"""What the services share: settings, server, errors, request context, cache, converters."""

from __future__ import annotations

import os

# Logs are JSON lines; set before any library is imported, since some read these on import.
for _name, _value in {
    "TQDM_DISABLE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "DIFFUSERS_VERBOSITY": "error",
}.items():
    os.environ.setdefault(_name, _value)
