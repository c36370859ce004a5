"""The errors of the library and the services; each is mapped once to gRPC and once to HTTP."""

from __future__ import annotations


class DekagError(Exception):
    """Base of every error that is meant to be read by whoever made the request."""


class InvalidInputError(DekagError):
    """A field of the request is outside what is allowed.

    Args:
        field: dotted name of the field, as the client wrote it ("link.snr_db").
        allowed: what would have been allowed, in words ("between -20 and 40 dB").
        got: the value that came, shown shortened.
    """

    def __init__(self, field: str, allowed: str, got: object) -> None:
        super().__init__(f"{field} must be {allowed}; got {str(got)[:80]!r}")
        self.field = field
        self.allowed = allowed
        self._got = str(got)[:80]

    def within(self, parent: str) -> InvalidInputError:
        """The same error for a field that is part of ``parent``: "cbr" within "link" is "link.cbr"."""
        return InvalidInputError(f"{parent}.{self.field}", self.allowed, self._got)

    def __reduce__(self) -> tuple[type[InvalidInputError], tuple[str, str, str]]:
        """How another process rebuilds it, as the message alone would not do."""
        return type(self), (self.field, self.allowed, self._got)


class FileError(InvalidInputError):
    """A file or folder that somebody named is not what is needed.

    Args:
        path: as it was named.
        problem: what is wrong and what to do, to follow the path ("is a folder, not a file").
    """

    def __init__(self, path: object, problem: str) -> None:
        super().__init__(str(path), f"another: it {problem}", "")
        self.args = (f"{path} {problem}",)
        self.problem = problem

    def __reduce__(self) -> tuple[type[FileError], tuple[str, str]]:  # type: ignore[override]
        """How another process rebuilds it."""
        return type(self), (self.field, self.problem)


class NotFoundError(DekagError):
    """What was asked for does not exist."""


class MismatchError(DekagError):
    """Two artifacts do not fit together: other hash, other base model, other shape."""


class ConflictError(DekagError):
    """What is asked for does not go with what is there: a job of that topic runs, a job is already over."""


class UnavailableError(DekagError):
    """A service or store that is needed cannot be reached now; trying again may help."""


class DeadlineError(DekagError):
    """The time that the client allowed is over."""


class NumericalError(DekagError):
    """A model made a value that is not finite; says for which seed, by which model and in which stage."""


class ExhaustedError(DekagError):
    """More is asked for at once than there is room for; trying later helps.

    Args:
        message: what there is too much of.
        retry_after_s: when trying again is worth it, s from now; None if that is not known.
    """

    def __init__(self, message: str, *, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
