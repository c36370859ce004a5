"""Problems in the form in which OpenAI's clients read them, and operations that do not exist here."""

from __future__ import annotations

from http import HTTPStatus

from dekag.api.schemas import ErrorBody

# as OpenAI names them, where it has a name
_CODES = {
    400: "invalid_request",
    401: "invalid_api_key",
    404: "not_found",
    422: "invalid_value",
    429: "rate_limit_exceeded",
    503: "service_unavailable",
    504: "timeout",
}
_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}

_GENERATE = "images follow from a prompt alone: POST /v1/images/generations"
_ABSENT = {
    "/v1/images/edits": f"images cannot be edited here; {_GENERATE}",
    "/v1/images/variations": f"images cannot be varied here; {_GENERATE}, with n for several",
}


def error_body(status: int, message: str, param: str | None) -> ErrorBody:
    """The `error` member of a problem.

    Args:
        status: HTTP status.
        message: cause, and what is allowed.
        param: name of the first invalid field, if any.
    """
    default = "server_error" if status >= 500 else "invalid_request_error"
    code = _CODES.get(status) or HTTPStatus(status).name.lower()
    return ErrorBody(message=message, type=_TYPES.get(status, default), param=param, code=code)


def absent(path: str) -> str | None:
    """Why there is no such operation of the OpenAI Images API here; None for other paths.

    Their bodies, forms with files, are not read.
    """
    return _ABSENT.get(path)
