"""Who gets a slot, who waits, who is refused: order, fairness, bounds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from dekag.errors import DeadlineError, ExhaustedError
from services.common.request_context import begin_request
from services.gateway.admission import Admission


class Crowd:
    """Requests that hold their slots until they are told to go."""

    def __init__(self, admission: Admission) -> None:
        self.admission, self.served = admission, []
        self.leave: dict[str, asyncio.Event] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def ask(self, name: str, client: str) -> None:
        """Asks for a slot as that client; ExhaustedError if it is refused at once."""

        async def request() -> None:
            async with self.admission.slot(client):
                self.served.append(name)
                await self.leave[name].wait()

        self.leave[name] = asyncio.Event()
        self.tasks[name] = asyncio.create_task(request())
        await asyncio.sleep(0)
        if self.tasks[name].done():
            await self.tasks.pop(name)

    async def go(self, name: str) -> None:
        """Ends a request that was served."""
        self.leave[name].set()
        await self.tasks.pop(name)
        await asyncio.sleep(0)


@asynccontextmanager
async def crowd(slots: int, max_waiting: int) -> AsyncIterator[Crowd]:
    begin_request(None, None)
    found = Crowd(Admission(slots=slots, max_waiting=max_waiting))
    yield found
    for task in found.tasks.values():
        task.cancel()
    await asyncio.gather(*found.tasks.values(), return_exceptions=True)
    async with AsyncExitStack() as stack:  # nobody has kept a slot
        for _ in range(slots):
            await asyncio.wait_for(stack.enter_async_context(found.admission.slot("after")), 1)


async def test_a_wait_ends_at_the_deadline_of_its_request() -> None:
    async with crowd(1, 1) as here:
        await here.ask("a", "alice")
        begin_request(None, 0.05)
        with pytest.raises(DeadlineError):
            async with asyncio.timeout(10), here.admission.slot("bob"):
                pass
        assert here.admission.waiting == 0
        begin_request(None, None)
        await here.go("a")


async def test_one_client_may_fill_all_slots_and_the_queue() -> None:
    async with crowd(2, 2) as here:
        for name in "abcd":
            await here.ask(name, "one")
        assert here.served == ["a", "b"]
        assert here.admission.waiting == 2
        with pytest.raises(ExhaustedError, match="2 requests are waiting") as refused:
            await here.ask("e", "one")
        assert refused.value.retry_after_s == 1
        await here.go("b")
        assert here.served == ["a", "b", "c"], "in order"
        await here.ask("f", "one")


async def test_free_slots_go_to_clients_in_turn() -> None:
    async with crowd(1, 6) as here:
        for name in ("a1", "a2", "a3", "a4"):
            await here.ask(name, "a")
        for name, client in (("b1", "b"), ("c1", "c"), ("b2", "b")):
            await here.ask(name, client)
        for name in ("a1", "a2", "b1", "c1", "a3", "b2", "a4"):
            assert here.served[-1] == name
            await here.go(name)


async def test_flood_of_one_client_leaves_room_for_others() -> None:
    async with crowd(2, 4) as here:
        for i in range(6):
            await here.ask(f"flood{i}", "flood")
        with pytest.raises(ExhaustedError):
            await here.ask("flood6", "flood")
        for i in range(3):  # half of the six places, as there are two clients now
            await here.ask(f"other{i}", "other")
        for client in ("flood", "other"):
            with pytest.raises(ExhaustedError):
                await here.ask("more", client)
        await here.ask("third", "third")
        with pytest.raises(ExhaustedError):
            await here.ask("fourth", "fourth")
        assert here.admission.waiting == 8, "twice as many as may wait, and no more"
        await here.go("flood0")
        await here.go("flood1")
        assert here.served[2:] == ["flood2", "other0"]


async def test_cancelled_request_frees_its_place() -> None:
    async with crowd(1, 1) as here:
        await here.ask("a", "one")
        await here.ask("b", "one")
        here.tasks["b"].cancel()
        await asyncio.gather(here.tasks.pop("b"), return_exceptions=True)
        assert here.admission.waiting == 0
        await here.ask("c", "one")
        here.leave["a"].set()
        here.tasks["c"].cancel()  # in the very moment in which its slot comes
        await asyncio.gather(*here.tasks.values(), return_exceptions=True)
        here.tasks.clear()


async def test_request_without_time_to_wait_is_refused_at_once() -> None:
    async with crowd(1, 8) as here:
        async with here.admission.slot("one"):
            await asyncio.sleep(0.2)  # so long takes a request
        await here.ask("a", "one")
        begin_request(None, 0.1)
        with pytest.raises(ExhaustedError, match="the expected wait is"):
            await here.ask("b", "one")
        begin_request(None, 60)
        await here.ask("c", "one")


async def test_failed_request_frees_its_slot() -> None:
    begin_request(None, None)
    admission = Admission(slots=1, max_waiting=0)
    for _ in range(2):
        with pytest.raises(ValueError, match="broken"):
            async with admission.slot("one"):
                raise ValueError("broken")
