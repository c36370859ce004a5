"""`dekag demo`: one image per delivery mode over the whole chain, side by side with what each one cost."""

from __future__ import annotations

import os
from pathlib import Path

from rich.console import Console

from dekag.client import Client
from dekag.errors import DekagError
from dekag.files import check_folder
from dekag.link import LinkConditions
from services.cli.report import report_table, write_images
from services.launcher.stack import HOST, Stack, Stopped
from services.launcher.up import RUN_DIR, await_ready

DELIVERIES = ("semantic", "semantic-unaligned", "conventional")


def run_demo(
    *, prompt: str, link: LinkConditions, seed: int, output: str | os.PathLike[str] = "demo-out"
) -> int:
    """Starts the chain on free ports, asks for one image per delivery mode, ends the chain.

    Args:
        prompt: what to draw.
        link: the radio channel, the same for each of them.
        seed: seeds generation, fading and noise.
        output: folder for a picture of each delivery that decoded, and ``side-by-side.png``.

    Returns:
        The exit status: 1 if the chain did not start or refused, 130 after a signal.
    """
    console = Console()
    check_folder(output)  # now, and not when all has been drawn
    try:
        # a port and an address that are set belong to what `dekag up` starts, beside which this may run
        own = {"DEKAG_PORT": "0", "DEKAG_HOST": HOST}
        with (
            Stack((RUN_DIR / "demo").resolve(), free_ports=True, env=own) as stack,
            Client(stack.url) as gateway,
        ):
            await_ready(stack, console)
            images = {}
            for delivery in DELIVERIES:
                with console.status(f"{delivery} delivery at {link.snr_db:g} dB"):
                    images[delivery] = gateway.image(
                        prompt, seed=seed, delivery=delivery, link=link.model_dump(exclude_defaults=True)
                    )
    except Stopped:
        return 130
    except DekagError as error:
        console.print(f"{error}\nLogs: {RUN_DIR / 'demo'}", style="red", markup=False, soft_wrap=True)
        return 1
    console.print(f'\n"{prompt}", seed {seed}\n', markup=False, highlight=False)
    console.print(report_table(images))
    folder = Path(output)
    written = write_images(images, folder)
    console.print(f"\nPictures: {', '.join(map(str, written))}", highlight=False, soft_wrap=True)
    return 0
