"""Steady load, and what became of every request: nothing that a client was not told is left out."""

from __future__ import annotations

import asyncio
import itertools
import re
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Self

import httpx2

PATH = "/v1/images/generations"
DELIVERIES = ("semantic", "semantic-unaligned", "conventional")
DOCUMENTED = frozenset({404, 409, 413, 422, 429, 503, 504})  # statuses of problems
LATE_S = 1.0  # that an answer may come after the gateway's deadline
EVERY_S = 0.6  # between two requests, or
SLACK = 2.5  # times what one takes alone, whichever is more: load, but no overload
UNANSWERED_S, PAUSE_S = 2.0, 0.25  # until who waits for an image asks again, without and after an answer
LINK = {"snr_db": 20, "fading": "awgn"}
TOPIC = "neon"
Outcome = Literal["image", "problem", "cut", "lost"]


@dataclass(frozen=True)
class Result:
    """What became of one request.

    Attributes:
        delivery: that was asked for.
        sent: when, by the monotonic clock, s.
        seconds: until the answer or the end of the connection.
        outcome: "image"; "problem", a clear error; "cut", the connection failed; "lost", anything else.
        status: of HTTP, 0 without an answer.
        said: the problem's title, or what was wrong.
        taught: whether the image was drawn with the knowledge that its prompt needs.
    """

    delivery: str
    sent: float
    seconds: float
    outcome: Outcome
    status: int
    said: str
    taught: bool = True

    @property
    def over(self) -> float:
        """When it was over, by the monotonic clock, s."""
        return self.sent + self.seconds


class Load:
    """Asks for images of all deliveries at a steady rate, whatever becomes of those before; a thread.

    Every fourth request repeats an earlier one, which caches may answer; the others are new.

    Args:
        url: of the gateway.
        deadline_s: of the gateway.

    Attributes:
        results: of all requests that are over.
        every_s: between two requests, s.
    """

    def __init__(self, url: str, deadline_s: float) -> None:
        self._url, self._deadline_s = url, deadline_s
        self.results: list[Result] = []
        self._seeds = itertools.count(int(time.time()) * 1000)  # new to caches of earlier runs too
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="load")
        self._in_flight: dict[int, float] = {}

    def __enter__(self) -> Self:
        self._thread.start()
        self.every_s = max(EVERY_S, SLACK * self._submit(self._pace()).result())
        self._asking = self._submit(self._ask_on())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._asking.cancel()
        self._submit(self._end()).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def between(self, begin: float, end: float) -> list[Result]:
        """All requests that were in flight at some time between; waits for those that still are."""
        while any(sent <= end for sent in list(self._in_flight.values())):
            time.sleep(0.05)
        return [each for each in list(self.results) if each.sent <= end and each.over >= begin]

    def ask(self, delivery: str, first: float, within_s: float) -> float:
        """Seconds from ``first`` until a new image of that delivery came, with all its knowledge.

        Asks again a moment after an answer, or when none came in 2 s: one request at a time, so that who asks
        is no load that keeps the chain from coming back. AssertionError if no image came in that time.
        """
        return self._submit(self._until_image(delivery, first, within_s)).result()

    def _submit(self, work: Any) -> Future[Any]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def _client(self) -> httpx2.AsyncClient:
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=16)
        timeout = self._deadline_s + 2 * LATE_S
        return httpx2.AsyncClient(base_url=self._url, timeout=timeout, trust_env=False, limits=limits)

    async def _ask_on(self) -> None:
        async with self._client() as client:
            requests: set[asyncio.Task[None]] = set()
            try:
                for number in itertools.count():
                    task = asyncio.create_task(self._note(client, number))
                    requests.add(task)
                    task.add_done_callback(requests.discard)
                    await asyncio.sleep(self.every_s)
            finally:
                for task in requests:
                    task.cancel()
                await asyncio.gather(*requests, return_exceptions=True)

    async def _pace(self) -> float:
        """Mean time of a request that has the chain for itself, s; all of them must be served."""
        async with self._client() as client:
            seconds = []
            for number in range(4 * len(DELIVERIES)):
                result = await self._request(client, DELIVERIES[number % 3], next(self._seeds))
                assert result.outcome == "image", result
                seconds.append(result.seconds)
        return sum(seconds[3:]) / len(seconds[3:])  # the first ones load and compile

    async def _note(self, client: httpx2.AsyncClient, number: int) -> None:
        seed = number % 16 if number % 4 == 3 else next(self._seeds)
        self._in_flight[number] = time.monotonic()
        self.results.append(await self._request(client, DELIVERIES[number % 3], seed))
        del self._in_flight[number]

    async def _until_image(self, delivery: str, first: float, within_s: float) -> float:
        async with self._client() as client:
            asking: set[asyncio.Task[Result]] = set()
            last = ""
            try:
                while time.monotonic() < first + within_s:
                    asking.add(asyncio.create_task(self._request(client, delivery, next(self._seeds))))
                    done, asking = await asyncio.wait(
                        asking, timeout=UNANSWERED_S, return_when=asyncio.FIRST_COMPLETED
                    )
                    for result in (task.result() for task in done):
                        if result.outcome == "image" and result.taught:
                            return result.over - first
                        last = f"status {result.status}, {result.said}"
                    await asyncio.sleep(PAUSE_S)
                raise AssertionError(
                    f"no {delivery} image within {within_s:g} s; last: {last or 'no answer'}"
                )
            finally:
                for task in asking:
                    task.cancel()
                await asyncio.gather(*asking, return_exceptions=True)

    async def _request(self, client: httpx2.AsyncClient, delivery: str, seed: int) -> Result:
        body = {
            "prompt": f"a red boat on the beach, {TOPIC} style",
            "seed": seed,
            "delivery": delivery,
            "link": LINK,
        }
        sent = time.monotonic()
        try:
            answer = await client.post(PATH, json=body)
        except httpx2.TimeoutException as error:
            return Result(delivery, sent, time.monotonic() - sent, "lost", 0, f"no answer: {error!r}")
        except httpx2.HTTPError as error:
            return Result(delivery, sent, time.monotonic() - sent, "cut", 0, type(error).__name__)
        seconds = time.monotonic() - sent
        outcome, said, taught = judge(answer, delivery)
        if seconds > self._deadline_s + LATE_S:
            outcome, said = "lost", f"late: {said}"
        return Result(delivery, sent, seconds, outcome, answer.status_code, said, taught)

    async def _end(self) -> None:
        await self._loop.shutdown_asyncgens()


def judge(answer: httpx2.Response, delivery: str) -> tuple[Outcome, str, bool]:
    """Outcome of an answer, what it said, and whether an image was drawn with the knowledge it needs."""
    try:
        body = answer.json()
        if answer.status_code == 200:
            (image,) = body["data"]
            report = image["link_report"]
            if report["decoded"] != bool(image["b64_json"]):
                return "lost", "neither an image nor said to be undecoded", False
            topics = [each["topic"] for each in report["knowledge"]]
            return "image", "", delivery != "semantic" or topics == [TOPIC]
        clear = answer.headers["content-type"] == "application/problem+json" and body["detail"]
        if answer.status_code in DOCUMENTED and clear and "Traceback" not in answer.text:
            said = re.sub(r"\d[\d.]*", "N", f"{body['title']}: {body['detail']}")
            return "problem", said, True
    except (ValueError, KeyError, TypeError):
        pass
    return "lost", f"status {answer.status_code}: {answer.text[:100]!r}", True


def counted(results: Sequence[Result]) -> Mapping[str, Any]:
    """How many requests ended how."""
    return {
        "requests": len(results),
        "images": sum(each.outcome == "image" for each in results),
        "untaught": sum(not each.taught for each in results),
        "problems": dict(Counter(str(each.status) for each in results if each.outcome == "problem")),
        "cut": sum(each.outcome == "cut" for each in results),
        "said": dict(Counter(each.said for each in results if each.said).most_common(6)),
        "slowest_s": round(max((each.seconds for each in results), default=0.0), 2),
    }
