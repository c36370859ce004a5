"""Ends a process on an error with one line in its log."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import structlog

from dekag.errors import DekagError
from services.common.environment import unknown_variables
from services.common.request_context import configure_logging

_log = structlog.get_logger()


@contextlib.contextmanager
def errors_logged(service: str) -> Iterator[None]:
    """Logs an error and ends the process with status 1.

    The message of a DekagError is logged as it is; other errors are logged with a traceback.
    """
    configure_logging(service, "info")  # the settings for logging may be invalid themselves
    for warning in unknown_variables():
        _log.warning(warning)
    try:
        yield
    except DekagError as error:
        _log.error(str(error))
        raise SystemExit(1) from None
    except Exception as error:
        _log.exception("service failed")
        raise SystemExit(1) from error
