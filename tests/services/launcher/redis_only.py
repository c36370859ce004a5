"""A stack of the launcher's without services."""

from __future__ import annotations

from services.launcher.stack import Stack


class RedisOnly(Stack):
    """A stack that starts Redis and nothing else."""

    def _start(self) -> None:
        self.run_dir.mkdir(parents=True, exist_ok=True)
        self._start_redis(self._given)
