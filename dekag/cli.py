"""The `dekag` command: `dekag up`, `dekag demo`, and what other modules add to `app`."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(
    name="dekag",
    help="Generative semantic communication with distillation-enabled knowledge alignment.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
)

FreePorts = Annotated[bool, typer.Option("--free-ports", help="Take free ports instead of the default ones.")]


@app.command()
def up(free_ports: FreePorts = False) -> None:
    """Start Redis and the five services on this machine until Ctrl-C."""
    from services.launcher.up import run_up

    raise typer.Exit(run_up(free_ports=free_ports))


@app.command()
def demo(
    prompt: Annotated[str, typer.Option(help="What to draw.")] = "a red boat at sea, pastel",
    snr_db: Annotated[float, typer.Option(help="Mean Es/N0 per complex channel use, dB.")] = 10.0,
    seed: Annotated[int, typer.Option(help="Seeds generation, fading and noise.", min=0)] = 7,
    output: Annotated[str, typer.Option(help="Folder for the pictures.")] = "demo-out",
) -> None:
    """Ask the whole chain for one image per delivery mode and compare what each one cost."""
    from services.launcher.demo import run_demo

    raise typer.Exit(run_demo(prompt=prompt, snr_db=snr_db, seed=seed, output=output))


if __name__ == "__main__":
    app()
