"""What an attack is, and the table of all that are tried."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from tests.trust.system import System

Try = Callable[[System], Awaitable[None]]


@dataclass(frozen=True)
class Attack:
    """One attack, which tells the system what it has achieved.

    Attributes:
        kind: what it aims at; attacks are counted by it.
        name: what is done, in words.
        run: does it.
    """

    kind: str
    name: str
    run: Try


ATTACKS: list[Attack] = []


def attack(kind: str, name: str) -> Callable[[Try], Try]:
    """Adds the function to the attacks."""

    def add(run: Try) -> Try:
        ATTACKS.append(Attack(kind, name, run))
        return run

    return add


def attacks(kind: str, names: Sequence[str]) -> Callable[[Callable[[System, str], Awaitable[None]]], None]:
    """Adds one attack for each name, which the function gets."""

    def add(run: Callable[[System, str], Awaitable[None]]) -> None:
        for name in names:

            async def bound(system: System, name: str = name) -> None:
                await run(system, name)

            ATTACKS.append(Attack(kind, name, bound))

    return add
