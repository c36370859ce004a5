"""Runs the command line: ``python -m services.cli``."""

from __future__ import annotations

from services.cli.main import app

if __name__ == "__main__":
    app(prog_name="dekag")
