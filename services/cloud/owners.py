"""Which API key each topic belongs to: a file ``<data>/owners/<topic>`` with the key's name.

A topic without a file is shared: made without API keys, shipped, or shared by an admin. Imports no torch.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
import uuid
from collections.abc import Collection, Iterator
from pathlib import Path

from dekag.errors import ConflictError
from services.cloud.synced_files import sync_folder, write_synced

_MAX_BYTES = 256
_CLAIM_S = 3600.0  # longest time from a claim to the first version or job


class Owners:
    """The owners of topics in the data folder.

    Args:
        data_dir: created on the first claim.
    """

    def __init__(self, data_dir: Path) -> None:
        self._folder = data_dir / "owners"
        self._suspects: set[str] = set()

    def of(self, topic: str) -> str:
        """Name of the key that a topic belongs to; empty if it is shared."""
        try:
            return (self._folder / topic).read_bytes()[:_MAX_BYTES].decode(errors="replace")
        except (FileNotFoundError, NotADirectoryError):
            return ""

    def claim(self, topic: str, owner: str, *, admin: bool, exists: bool) -> None:
        """Makes a new topic that of ``owner``, before anything of it is made. One claim at a time.

        Args:
            topic: a valid name.
            owner: name of a key; empty without keys, whose topics are shared.
            admin: whether the key may change every topic; those of others stay theirs.
            exists: whether the topic has versions or an unfinished job. Otherwise an owner is left from a
                topic that was deleted, or from a job that never published.

        Raises:
            ConflictError: the topic is shared or belongs to another key, and ``owner`` is no admin.
        """
        if self.renew(topic, owner) or (exists and admin):
            return
        if exists:
            whose = "belongs to another API key" if self.of(topic) else "is shared, and only admins change it"
            raise ConflictError(f"topic {topic!r} {whose}; choose another name")
        if not owner:
            self.share(topic)
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        with self._changing():
            new = self._folder / f".new-{uuid.uuid4().hex}"
            write_synced(new, owner.encode())
            new.replace(self._folder / topic)
            sync_folder(self._folder)

    def renew(self, topic: str, owner: str) -> bool:
        """Whether a topic is ``owner``'s already; its claim is as good as new then.

        The topic may just have been deleted, and its next version may follow at once.
        """
        if not owner:
            return not self.of(topic)
        with contextlib.suppress(FileNotFoundError, NotADirectoryError), self._changing():
            if self.of(topic) == owner:
                os.utime(self._folder / topic)
                return True
        return False

    def share(self, topic: str) -> None:
        """Lets every key use a topic, which only admins can change from then on."""
        with contextlib.suppress(NotADirectoryError):
            (self._folder / topic).unlink(missing_ok=True)

    def tidy(self, topics: Collection[str]) -> None:
        """Deletes the owners of topics that are gone, and what killed processes left behind.

        An owner is deleted by the second call in succession that finds it old and without a topic. So a
        topic that is being published keeps its owner even if the clock jumps forward.

        Args:
            topics: those that exist, or that an unfinished job may still publish.
        """
        suspects = set()
        with contextlib.suppress(FileNotFoundError, NotADirectoryError), self._changing():
            for file in self._folder.iterdir():
                with contextlib.suppress(FileNotFoundError):  # shared meanwhile
                    if file.name.startswith(".new-"):  # no process writes it now
                        file.unlink()
                    elif file.name not in topics and abs(time.time() - file.stat().st_mtime) > _CLAIM_S:
                        suspects.add(file.name)
                        if file.name in self._suspects:
                            file.unlink()
        self._suspects = suspects

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        """Inside the context nobody else claims or tidies; FileNotFoundError without the folder."""
        handle = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    def count(self) -> int:
        """Number of topics that belong to keys."""
        try:
            return sum(not file.name.startswith(".") for file in self._folder.iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return 0
