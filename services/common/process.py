"""How each of our processes ends on an error: with one line in its log that says what is wrong."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import structlog

from dekag.errors import DekagError
from services.common.environment import unknown
from services.common.request_context import configure_logging

_log = structlog.get_logger()


@contextlib.contextmanager
def errors_logged(service: str) -> Iterator[None]:
    """Ends the process with status 1 on an error, and logs it.

    What is meant to be read is logged as it is; only what nobody foresaw comes with its traceback.
    """
    configure_logging(service, "info")  # what is wrong may be the settings that say how to log
    for told in unknown():
        _log.warning(told)
    try:
        yield
    except DekagError as error:
        _log.error(str(error))
        raise SystemExit(1) from None
    except Exception as error:
        _log.exception("service failed")
        raise SystemExit(1) from error
