"""`dekag demo`: sends one image with each delivery mode and compares the costs.

The edge first gets the shipped knowledge updates that the prompt needs, so that the gain of both alignments
shows.
"""

from __future__ import annotations

import os
from pathlib import Path

from dekag.api.limits import check_prompt, check_seed
from dekag.artifacts import INFO
from dekag.client import Client
from dekag.console import plain_console
from dekag.documents import read_json
from dekag.errors import DekagError
from dekag.files import check_folder
from dekag.link import LinkConditions
from dekag.makd.topics import matching
from dekag.makd.update import KnowledgeUpdate
from dekag.profile import load_profile
from services.cli.extras import as_typed, exit_status
from services.cli.report import report_table, write_images
from services.common.environment import get
from services.launcher.stack import HOST, Stack, Stopped
from services.launcher.up import RUN_DIR, await_ready

DELIVERIES = ("semantic", "semantic-unaligned", "conventional")


def updates_for(prompt: str) -> list[Path]:
    """Folders of the shipped knowledge updates that `prompt` needs, by name.

    Raises:
        DekagError: the profile cannot be read.
    """
    folder = load_profile(get("DEKAG_PROFILE", "stickers")).knowledge
    if folder is None:
        return []
    triggers = {path.parent.name: read_json(path)["triggers"] for path in Path(folder).glob(f"*/{INFO}")}
    return [Path(folder) / topic for topic in matching(prompt, triggers)]


def run_demo(
    *, prompt: str, link: LinkConditions, seed: int, output: str | os.PathLike[str] = "demo-out"
) -> int:
    """Starts all services on free ports, requests one image per delivery mode, stops the services.

    Args:
        prompt: text that describes the image.
        link: the radio channel, the same for all deliveries.
        seed: seed of generation, fading and noise.
        output: folder for an image per decoded delivery, and ``side-by-side.png``.

    Returns:
        The exit status: 2 if a different request would succeed, 1 if the services did not start or failed,
        130 after a signal.

    Raises:
        DekagError: prompt, seed, output or profile cannot be used; nothing was started.
    """
    console = plain_console()
    check_prompt(prompt)
    check_seed(seed)
    check_folder(output)
    updates = updates_for(prompt)
    try:
        # DEKAG_PORT and DEKAG_HOST are for `dekag up`, which may run at the same time
        own = {"DEKAG_PORT": "0", "DEKAG_HOST": HOST}
        with (
            Stack((RUN_DIR / "demo").resolve(), free_ports=True, env=own) as stack,
            Client(stack.url) as gateway,
        ):
            await_ready(stack, console)
            for update in updates:
                gateway.publish(update)
                size = KnowledgeUpdate.load(update).size_bytes
                console.print(f"The edge gets the shipped update of {update.name}: {size:,} B, once")
            images = {}
            for delivery in DELIVERIES:
                with console.status(f"{delivery} delivery at {link.snr_db:g} dB"):
                    images[delivery] = gateway.image(
                        prompt, seed=seed, delivery=delivery, link=link.model_dump(exclude_defaults=True)
                    )
    except Stopped:
        return 130
    except DekagError as error:
        console.print(f"{as_typed(error)}\nLogs: {RUN_DIR / 'demo'}", style="red", soft_wrap=True)
        return exit_status(error)
    console.print(f'\n"{prompt}", seed {seed}\n')
    console.print(report_table(images))
    folder = Path(output)
    written = write_images(images, folder)
    console.print(f"\nImages: {', '.join(map(str, written))}", soft_wrap=True)
    return 0
