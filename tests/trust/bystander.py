"""Another client, in a process of its own, so that what it sees is not slowed down by the attacker's work.

Reads one JSON list per line from standard input and answers each with one line of JSON:

=====================  ==============================================================================
``["watch"]``          from now on checks /healthz ten times a second
``["report"]``         stops; answers with ``problems`` and ``slowest_s``
``["get", path, key]`` the status of a GET with an API key; a text if there was none within 8 s
=====================  ==============================================================================
"""

from __future__ import annotations

import json
import ssl
import sys
import threading
import time
from http.client import HTTPException, HTTPSConnection
from typing import Any

EVERY_S = 0.1
LIMIT_S = 8.0
"""Longest wait, s: less than the time limits after which the system drops those who hold its places."""


class Bystander:
    """The client.

    Args:
        port: of the front.
        authority: file of the certificate that it believes.
    """

    def __init__(self, port: int, authority: str) -> None:
        self._port, self._tls = port, ssl.create_default_context(cafile=authority)
        self._stop, self._watching = threading.Event(), threading.Thread()
        self.problems: list[str] = []
        self.slowest_s = 0.0

    def get(self, path: str, key: str = "") -> int | str:
        """The status of a GET on a new connection, or what happened instead."""
        connection = HTTPSConnection("127.0.0.1", self._port, timeout=LIMIT_S, context=self._tls)
        try:
            authorization = {"Authorization": f"Bearer {key}"} if key else {}
            connection.request("GET", path, headers={"Connection": "close", **authorization})
            return connection.getresponse().status
        except (OSError, HTTPException, ValueError) as error:
            return type(error).__name__
        finally:
            connection.close()

    def watch(self) -> None:
        """Starts to check the health."""
        self.problems, self.slowest_s = [], 0.0
        self._stop.clear()
        self._watching = threading.Thread(target=self._watch)
        self._watching.start()

    def _watch(self) -> None:
        while True:
            start = time.monotonic()
            if (status := self.get("/healthz")) != 200:
                how = f"was answered with {status}" if isinstance(status, int) else f"failed: {status}"
                if (problem := f"a health check {how}") not in self.problems:
                    self.problems.append(problem)
            self.slowest_s = max(self.slowest_s, time.monotonic() - start)
            if self._stop.wait(EVERY_S):
                return

    def report(self) -> dict[str, Any]:
        """Stops, and says what was seen."""
        self._stop.set()
        self._watching.join()
        return {"problems": self.problems, "slowest_s": self.slowest_s}


def main() -> None:
    """Answers the commands until the input ends."""
    bystander = Bystander(int(sys.argv[1]), sys.argv[2])
    print("ready", flush=True)  # noqa: T201
    for line in sys.stdin:
        command, *arguments = json.loads(line)
        print(json.dumps(getattr(bystander, command)(*arguments)), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
