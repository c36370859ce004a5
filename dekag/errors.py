"""The errors of the library and the services; each is mapped once to gRPC and once to HTTP."""

from __future__ import annotations


class DekagError(Exception):
    """Base class of errors with a message for the user."""


class InvalidInputError(DekagError):
    """A field has a value that is not allowed.

    Args:
        field: dotted name of the field, as the client wrote it ("link.snr_db").
        allowed: allowed values, in words ("between -20 and 40 dB").
        got: the given value, shortened in the message.
    """

    def __init__(self, field: str, allowed: str, got: object) -> None:
        super().__init__(f"{field} must be {allowed}; got {str(got)[:80]!r}")
        self.field = field
        self.allowed = allowed
        self._got = str(got)[:80]

    def within(self, parent: str) -> InvalidInputError:
        """The same error for a field inside ``parent``: "cbr" within "link" is "link.cbr"."""
        return self.named(f"{parent}.{self.field}")

    def named(self, field: str) -> InvalidInputError:
        """The same error for a field with another name, such as that of a setting."""
        return InvalidInputError(field, self.allowed, self._got)

    def __reduce__(self) -> tuple[type[InvalidInputError], tuple[str, str, str]]:
        """Makes it picklable."""
        return type(self), (self.field, self.allowed, self._got)


class FileError(InvalidInputError):
    """A file or folder given by the user cannot be used.

    Args:
        path: path as given.
        problem: what is wrong and how to fix it, as a phrase after the path ("is a folder, not a file").
    """

    def __init__(self, path: object, problem: str) -> None:
        super().__init__(str(path), f"another: it {problem}", "")
        self.args = (f"{path} {problem}",)
        self.problem = problem

    def __reduce__(self) -> tuple[type[FileError], tuple[str, str]]:  # type: ignore[override]
        """Makes it picklable."""
        return type(self), (self.field, self.problem)


class NotFoundError(DekagError):
    """The requested object does not exist."""


class MismatchError(DekagError):
    """Two artifacts do not fit together: different hash, base model or shape."""


class ConflictError(DekagError):
    """The request conflicts with the current state: a job of the topic is running, or has already ended."""


class UnavailableError(DekagError):
    """A required service or store cannot be reached now; retrying may help."""


class DeadlineError(DekagError):
    """The client's deadline has passed."""


class NumericalError(DekagError):
    """A model produced a value that is not finite; the message names seed, model and stage."""


class ExhaustedError(DekagError):
    """Too many requests at once; retrying later helps.

    Args:
        message: what is exhausted.
        retry_after_s: suggested wait before a retry, s; None if unknown.
    """

    def __init__(self, message: str, *, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


def described(value: object) -> str:
    """What was given instead of a tensor or an array of some shape."""
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    return type(value).__name__ if shape is None else f"{tuple(shape)} {dtype}"
