"""A week in an hour: real processes under load on a shifted clock; `make test-week`.

MINUTES sets how long the week takes. Jobs, versions, adapters, API keys, images and refused requests come as
fast as the clock runs; afterwards every store must be within its quota.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import os
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest
from redis import Redis

from dekag.evaluation.pages import Row
from dekag.evaluation.registry import record
from dekag.evaluation.reports.claims import CLAIMS
from dekag.evaluation.reports.robustness import REPORT
from dekag.makd.update import KnowledgeUpdate
from services.bench.soak import growths, random_requests, read
from services.cloud.jobs import OVER
from services.cloud.settings import CloudSettings
from services.gateway.api_keys import new_key
from services.launcher.stack import METERED, Stack, free_ports
from tests.chain import QUALITY, adapters
from tests.hostile.artifacts import tiny_update
from tests.runs import write_run
from tests.trust.refusals import is_broken
from tests.trust.shifted import Level, levels, shift

pytestmark = pytest.mark.trust
DAY_S, DAYS = 86_400, 7
MINUTES = os.environ.get("MINUTES", "")
COMMAND = f"{MINUTES and f'MINUTES={MINUTES} '}make test-week"
TIMES = 100
"""Steps of the clock, and readings of memory and stores."""
IMAGES_HZ, REFUSED_HZ, VERSIONS_HZ, ADAPTERS_HZ = 2.0, 5.0, 1.0, 0.1
CLIENTS = ("alice", "bob", "carol")
SMALL = {
    "prompts": ["a {red|blue|green|white} {cat|dog|cow|hen} {in the snow|at sea|at night}"],
    "images": 4, "steps": 2, "rank": 1, "tokens": 1, "force": True,
}  # fmt: skip


class Week:
    """The load of a week.

    Args:
        stack: the running system.
        folder: with the file of API keys and the data folder.
        profile: of the models.
        seconds: how long the week takes, s.

    Attributes:
        counts: what was done, by kind.
        statuses: of all answers.
        problems: what must not happen.
        rows: readings of memory.
        levels: how full each store was, for each reading.
    """

    def __init__(self, stack: Stack, folder: Path, profile: Path, seconds: float, cloud_metrics: int) -> None:
        self._stack, self._folder, self._seconds = stack, folder, seconds
        self._settings = CloudSettings.read(stack["cloud"].env)
        self._cloud_metrics = cloud_metrics
        self._redis = Redis.from_url(stack.redis_url)
        self._update, self._codec = tiny_update(profile), profile / "codec"
        self._rng = random.Random(0)
        self._keys: dict[str, str] = {}
        self._older = ""  # alice's key of the day before
        self._lines: list[list[str]] = []
        self.counts, self.statuses = Counter[str](), Counter[str]()
        self.problems: list[str] = []
        self.rows: list[Row] = []
        self.levels: list[dict[str, Level]] = []

    async def run(self) -> None:
        """Loads the system for a week, and waits until nothing is left to do."""
        self._http = httpx2.AsyncClient(base_url=self._stack.url, timeout=120, trust_env=False)
        async with self._http, asyncio.TaskGroup() as tasks:
            await self.renew_keys()
            self._start = time.monotonic()
            tasks.create_task(self._tick())
            tasks.create_task(self._images())
            tasks.create_task(self._repeat(REFUSED_HZ, self._refused))
            tasks.create_task(self._repeat(VERSIONS_HZ, self._publish))
            tasks.create_task(self._repeat(ADAPTERS_HZ, self._adapt))
            for client in CLIENTS:
                tasks.create_task(self._repeat(1.0, lambda client=client: self._teach(client)))

    @property
    def over(self) -> bool:
        """Whether the week is."""
        return time.monotonic() - self._start >= self._seconds

    async def _tick(self) -> None:
        """Lets the clock run, and reads memory and stores."""
        last, days = self._start, 0
        while not self.over:
            self.rows += await asyncio.to_thread(read, self._stack, time.monotonic() - self._start)
            await self.look()
            await asyncio.sleep(self._seconds / TIMES)
            now = time.monotonic()
            past_s = (now - last) * DAYS * DAY_S / self._seconds
            await asyncio.to_thread(shift, self._folder / "data", self._redis, past_s)
            last = now
            if (now - self._start) * DAYS / self._seconds > days + 1:
                days += 1
                await self.renew_keys()

    async def look(self) -> None:
        """Reads how full the stores are; the logs are rotated as `dekag up` rotates them."""
        self._stack.check_alive()
        data, logs = self._folder / "data", self._folder / "run"
        self.levels.append(
            dict(
                await asyncio.to_thread(levels, self._cloud_metrics, self._redis, data, logs, self._settings)
            )
        )

    async def renew_keys(self) -> None:
        """Every client gets a new key, which must work at once; keys of the day before yesterday must not."""
        day = len(self._lines)
        made = {
            name: new_key(
                f"{name}-{day}",
                scopes=("admin",) if name == "admin" else (),
                requests_per_minute=90_000,
                concurrency=64,
            )
            for name in (*CLIENTS, "admin")
        }
        lines = [line for _, line in made.values()]
        file = self._folder / "api-keys"
        new = file.with_suffix(".new")
        new.write_text("\n".join(itertools.chain(*self._lines[-1:], lines)) + "\n")
        new.replace(file)
        self.counts["keys"] += len(made)
        keys, old = {name: key for name, (key, _) in made.items()}, self._keys
        for key, status in ((keys["alice"], 200), (self._older, 401)):
            deadline = time.monotonic() + 10
            while key and await self._status_with(key) != status:
                if time.monotonic() > deadline:
                    self._fail(f"a key is not answered with {status} after 10 s")
                    break
                await asyncio.sleep(0.2)
        self._older, self._keys = old.get("alice", ""), keys
        self._lines.append(lines)

    async def _status_with(self, key: str) -> int:
        answer = await self._http.get("/v1/knowledge", headers={"Authorization": f"Bearer {key}"})
        return answer.status_code

    def _fail(self, problem: str) -> None:
        if problem not in self.problems:
            self.problems.append(problem)

    async def _ask(self, name: str, method: str, path: str, **options: Any) -> httpx2.Response:
        """The answer to a request of a client, or without a key if there is no such client."""
        headers = {"Authorization": f"Bearer {self._keys[name]}"} if name in self._keys else {}
        answer = await self._http.request(method, path, headers=headers, **options)
        self.statuses[str(answer.status_code)] += 1
        if is_broken(answer.status_code, answer.text):
            self._fail(f"{method} {path.partition('?')[0]} was answered with {answer.status_code}")
        return answer

    async def _repeat(self, rate_hz: float, do: Callable[[], Awaitable[None]]) -> None:
        """Does it at random times, and never twice at once, until the week is over."""
        while not self.over:
            await do()
            await asyncio.sleep(self._rng.expovariate(rate_hz))

    async def _images(self) -> None:
        """Requests of all kinds, some of clients that leave."""
        pending: set[asyncio.Task[None]] = set()

        async def ask(method: str, path: str, body: Any, patience_s: float | None) -> None:
            options = {"json": body} if body is not None else {}
            try:
                answer = await self._ask(
                    self._rng.choice(CLIENTS), method, path, timeout=patience_s or 120, **options
                )
            except httpx2.TransportError as error:
                if patience_s is None:
                    self._fail(f"{method} {path}: {type(error).__name__}")
                return
            self.counts["images"] += answer.status_code == 200 and method == "POST"

        for request in random_requests(self._rng):
            if self.over:
                break
            pending = {task for task in pending if not task.done()}
            if len(pending) < 8:
                pending.add(asyncio.create_task(ask(*request)))
            await asyncio.sleep(self._rng.expovariate(IMAGES_HZ))
        await asyncio.gather(*pending)

    async def _refused(self) -> None:
        """A request without a key, each time for another path."""
        await self._ask("", "GET", f"/v1/{self._rng.getrandbits(64):x}")
        self.counts["refused requests"] += 1

    async def _publish(self) -> None:
        """A new version of one of a client's topics, or a topic that nobody had; what is full is emptied."""
        client = self._rng.choice(CLIENTS)
        number = self.counts["versions"]
        topic = f"new-{number}" if number % 2 else self._topic(client)
        info = {**self._update.info, "topic": topic, "triggers": [topic], "guidance_scale": 1 + number / 1e6}
        files = KnowledgeUpdate.new(info, self._update.metaword, self._update.lora, bits=16).to_files()
        answer = await self._ask(client, "PUT", f"/v1/knowledge/{topic}", json={"files": _encoded(files)})
        if answer.status_code == 429 and "_TOPICS)" in answer.text:
            known = (await self._ask("admin", "GET", "/v1/knowledge")).json()["data"]
            for each in self._rng.sample(known, min(10, len(known))):
                await self._ask("admin", "DELETE", f"/v1/knowledge/{each['topic']}")
                self.counts["deleted topics"] += 1
        elif answer.status_code == 200:
            self.counts["versions"] += 1
        elif not _is_later(answer):
            self._fail(f"a version was answered with {answer.status_code}: {answer.text[:200]}")

    def _topic(self, client: str) -> str:
        """One of the topics of the client's key, which belong to it."""
        return f"{client}-{len(self._lines)}-{self._rng.randrange(3)}"

    async def _adapt(self) -> None:
        """A new version of the codec's adapters."""
        seed = self.counts["adapters"]
        files = adapters(self._codec, seed, quality=QUALITY).to_files()
        answer = await self._ask("admin", "PUT", "/v1/transmission", json={"files": _encoded(files)})
        if answer.status_code == 200:
            self.counts["adapters"] += 1
        elif not _is_later(answer):
            self._fail(f"adapters were answered with {answer.status_code}: {answer.text[:200]}")

    async def _teach(self, client: str) -> None:
        """A job, now and then cancelled; it must end."""
        order = {"topic": self._topic(client), **SMALL}
        answer = await self._ask(client, "POST", "/v1/knowledge", json=order)
        if _is_later(answer):  # there are as many topics as there may be, until some are deleted
            return None
        if answer.status_code != 202:
            return self._fail(f"a job was answered with {answer.status_code}: {answer.text[:200]}")
        path = f"/v1/jobs/{answer.json()['id']}"
        if self._rng.random() < 0.1:
            await self._ask("admin", "DELETE", path)
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            job = await self._ask("admin", "GET", path)
            if job.status_code == 404:
                return self._fail("a job has disappeared")
            if (status := job.json()["status"]) in OVER:
                self.counts[f"jobs, {status}"] += 1
                if status == "failed":
                    self._fail(f"a job has failed: {job.json().get('error')}")
                return None
            await asyncio.sleep(0.3)
        return self._fail("a job has not ended within 300 s")

    async def finish(self, tidy_s: float) -> None:
        """Waits for the cloud's housekeeping, and reads the stores a last time."""
        await asyncio.sleep(tidy_s)
        await self.look()
        self._redis.close()


def _is_later(answer: httpx2.Response) -> bool:
    """Whether a request has come too early: a limit is reached, or the system is full."""
    return answer.status_code == 429 or (answer.status_code == 503 and not is_broken(503, answer.text))


def _encoded(files: Any) -> dict[str, str]:
    return {name: base64.b64encode(data).decode() for name, data in files.items()}


def test_week(dummy_profile: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    seconds = 60 * float(MINUTES or 60)
    verify_s = min(60.0, max(2.0, seconds / 20))
    first = free_ports(len(METERED))
    _, line = new_key("nobody")
    (tmp_path / "api-keys").write_text(line + "\n")
    env = {
        "DEKAG_PROFILE": str(dummy_profile),
        "DEKAG_DATA_DIR": str(tmp_path / "data"),
        "DEKAG_API_KEYS_FILE": str(tmp_path / "api-keys"),
        "DEKAG_METRICS_PORT": str(first),
        "DEKAG_VERIFY_EVERY_S": str(verify_s),
        "OMP_NUM_THREADS": "1",
    }
    with Stack(tmp_path / "run", free_ports=True, env=env, grace_s=10) as stack:
        for _ in stack.wait_ready(600):
            pass
        week = Week(stack, tmp_path, dummy_profile, seconds, first + METERED.index("cloud"))
        asyncio.run(week.run())
        asyncio.run(week.finish(verify_s + 5))
    stores = {
        name: {
            "quota": round(level.quota, 2),
            "start": round(week.levels[0][name].held, 2),
            "most": round(max(each[name].held for each in week.levels), 2),
            "end": round(level.held, 2),
        }
        for name, level in week.levels[-1].items()
    }
    growth = {what: round(percent, 2) for what, percent in growths(week.rows, seconds).items()}
    content = {
        "load_average": round(os.getloadavg()[2], 1),
        "seconds": round(seconds),
        "days": DAYS,
        "speed": round(DAYS * DAY_S / seconds, 1),
        "readings": len(week.levels),
        "counts": dict(sorted(week.counts.items())),
        "statuses": dict(week.statuses.most_common()),
        "growth_percent": growth,
        "stores": stores,
        "problems": week.problems,
    }
    print(content)  # noqa: T201
    over = [name for name, store in stores.items() if store["end"] > store["quota"]]
    if request.config.getoption("--record"):
        write_run("week", COMMAND, content)
        record("soak_week_growth_percent", growth["rss_gib"], "%", command=COMMAND, count=len(week.levels))
        CLAIMS.write()
        REPORT.write()
    assert not week.problems
    assert not over, "above the quota"
    for what in ("jobs, finished", "images", "versions", "adapters", "refused requests"):
        assert week.counts[what], f"no {what}"
