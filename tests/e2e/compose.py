"""A project of docker-compose.yml on a real engine, which several tests start."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import pytest

from services.launcher.stack import free_port

ROOT = Path(__file__).resolve().parents[2]


class Project:
    """One project, which is called with arguments of ``docker compose``.

    Args:
        name: of the project.
        env: variables, besides those of this process.
        files: the files of the project, instead of docker-compose.yml.

    Attributes:
        name: of the project.
        port: of its gateway.
    """

    def __init__(self, name: str, env: dict[str, str] | None = None, files: tuple[str, ...] = ()) -> None:
        if shutil.which("docker") is None:
            pytest.fail("docker is not here")
        self.name, self.port = name, free_port()
        self._files = files
        self._env = os.environ | {"DEKAG_GATEWAY_PORT": str(self.port)} | (env or {})

    def run(
        self, *arguments: str, files: tuple[str, ...] | None = None, **env: str
    ) -> subprocess.CompletedProcess[str]:
        """What became of a command, with other files and further variables if they are given."""
        named = [part for file in (self._files if files is None else files) for part in ("--file", file)]
        return subprocess.run(
            ["docker", "compose", "--project-name", self.name, *named, *arguments],
            cwd=ROOT,
            env=self._env | env,
            capture_output=True,
            text=True,
            check=False,
        )

    def __call__(self, *arguments: str, files: tuple[str, ...] | None = None, **env: str) -> str:
        """Output of a command, which must succeed."""
        done = self.run(*arguments, files=files, **env)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    def sh(self, service: str, script: str) -> subprocess.CompletedProcess[str]:
        """Runs a script in a container that runs."""
        return self.run("exec", "-T", service, "sh", "-c", script)

    @contextmanager
    def running(self) -> Iterator[Self]:
        """Builds and starts the project, and removes it in the end."""
        try:
            started = self.run("up", "--build", "--wait", "--wait-timeout", "600")
            if started.returncode != 0:
                pytest.fail(f"{started.stderr[-3000:]}\n{self.run('logs', '--tail', '20').stdout}")
            yield self
        finally:
            self.run("down", "--volumes", "--remove-orphans", "--timeout", "40")

    def containers(self) -> dict[str, dict[str, Any]]:
        """What the engine says of each container, also of those that have ended, by service."""
        ids = self("ps", "--all", "--quiet").split()
        described = json.loads(subprocess.check_output(["docker", "inspect", *ids]))
        return {each["Config"]["Labels"]["com.docker.compose.service"]: each for each in described}
