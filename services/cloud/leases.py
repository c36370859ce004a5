"""What one cloud has for itself: its data folder, and what it publishes to a Redis.

=====================================  =======================================================
``<data>/cloud.lock``                  locked by the process of the cloud, whose name it holds
``<data>/cloud.id``                    random name of the data folder
``dekag:lock:cloud``                   name of the data folder whose cloud publishes here, then its process
=====================================  =======================================================
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import re
import socket
import uuid
from pathlib import Path

from redis.asyncio import Redis

from services.cloud.synced_files import sync_folder, write_synced
from services.common.errors import SettingError

LEASE_KEY = "dekag:lock:cloud"
NEW_ID = ".new-cloud.id"
"""Left by a cloud that was killed while it named the folder."""
_LOCK, _ID = "cloud.lock", "cloud.id"
_NAME = re.compile(r"[0-9a-f]{32}")
_HOLDER_CHARS = 300  # of another cloud's name that are shown
# Scripts, so that no cloud comes between reading and writing. The value begins with the folder's name.
_TAKE = """
local held = redis.call('GET', KEYS[1])
if held and held ~= '' and string.match(held, '^[^ ]*') ~= ARGV[1] then return held end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
return ''
"""
_GIVE_BACK = """
local held = redis.call('GET', KEYS[1])
if held and string.match(held, '^[^ ]*') == ARGV[1] then redis.call('DEL', KEYS[1]) end
"""


class FolderLease:
    """The right of one cloud to use a data folder; it ends with its process.

    Args:
        data_dir: created if missing.

    Attributes:
        name: random name of the folder, given by its first cloud.

    Raises:
        SettingError: another cloud uses the folder; the message names its process.
        OSError: the folder cannot be opened.
    """

    name: str

    def __init__(self, data_dir: Path) -> None:
        data_dir.mkdir(parents=True, exist_ok=True)
        try:
            self._file = (data_dir / _LOCK).open("a+")
        except OSError as error:
            if error.errno != errno.EROFS:
                raise
            self._file = (data_dir / _LOCK).open()  # what is on a read-only disk can still be read
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.seek(0)
            holder = self._file.read(200).strip() or "another process"
            self._file.close()
            raise SettingError(
                f"another cloud ({holder}) uses DEKAG_DATA_DIR {data_dir}: stop it, or give each cloud a "
                "folder of its own"
            ) from None
        with contextlib.suppress(OSError):  # full or read-only; it is only for another cloud's message
            os.ftruncate(self._file.fileno(), 0)
            os.write(self._file.fileno(), _process().encode())
        self._data_dir, self.name = data_dir, _read_name(data_dir) or uuid.uuid4().hex
        self.keep_name()

    def keep_name(self) -> None:
        """Writes the name into the folder unless it is there; a full or read-only disk prevents that."""
        if _read_name(self._data_dir) == self.name:
            return
        with contextlib.suppress(OSError):
            new = self._data_dir / NEW_ID
            write_synced(new, self.name.encode())
            new.rename(self._data_dir / _ID)
            sync_folder(self._data_dir)

    def close(self) -> None:
        """Gives the folder back."""
        self._file.close()


class RedisLease:
    """The right of one data folder's cloud to publish to a Redis.

    Two clouds with different data folders would each remove what the other has published. A cloud that
    starts again with the same folder takes the lease over at once.

    Args:
        redis: connection to it.
        folder: name of the data folder.
        data_dir: where that is, for messages.
        keep_s: how long the lease lasts unless it is taken again, s.
    """

    def __init__(self, redis: Redis, folder: str, data_dir: Path, keep_s: float) -> None:
        self._redis, self._folder, self._keep_s = redis, folder, keep_s
        self._value = f"{folder} {_process()}, DEKAG_DATA_DIR {data_dir}"

    async def take(self) -> str:
        """Takes the lease or prolongs it; returns why another cloud has it, empty if this one does.

        Raises:
            redis.exceptions.RedisError: Redis does not answer.
            OSError: the same.
        """
        given = (LEASE_KEY, self._folder, self._value, round(self._keep_s * 1000))
        other = await self._redis.eval(_TAKE, 1, *given)  # type: ignore[misc]  # typed for both clients
        return (
            f"{_other_cloud(other)}: stop it, or give each cloud a database of its own in DEKAG_REDIS_URL; "
            f"if it has crashed, Redis is free within {self._keep_s:.0f} s"
            if other
            else ""
        )

    async def give_back(self) -> None:
        """Ends the lease, if it is this cloud's.

        Raises:
            redis.exceptions.RedisError: Redis does not answer.
            OSError: the same.
        """
        given = (LEASE_KEY, self._folder)
        await self._redis.eval(_GIVE_BACK, 1, *given)  # type: ignore[misc]  # typed for both clients


async def other_cloud(redis: Redis, data_dir: Path) -> str:
    """Why a distiller of that data folder must not use Redis: another folder's cloud does; else empty.

    Raises:
        redis.exceptions.RedisError: Redis does not answer.
        OSError: the same, or the folder cannot be read.
    """
    if not (value := await redis.get(LEASE_KEY)):
        return ""
    own = await asyncio.to_thread(_read_name, data_dir)
    return _other_cloud(value) if value.split(b" ")[0] != own.encode() else ""


def _other_cloud(value: bytes) -> str:
    process = value.partition(b" ")[2].decode(errors="replace")[:_HOLDER_CHARS]
    return f"the cloud of another data folder ({process}) uses the same Redis"


def _process() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}"


def _read_name(data_dir: Path) -> str:
    """The name of a data folder; empty if it has none, or a damaged one."""
    try:
        name = (data_dir / _ID).read_text(errors="replace").strip()
    except FileNotFoundError:
        return ""
    return name if _NAME.fullmatch(name) else ""
