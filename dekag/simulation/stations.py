"""Where requests wait: servers with a queue, cells that several transmissions share, and bounded storage.

On SimPy. A queue is one event per job, not three as with `simpy.Resource`: with jobs in the order of their
arrival and known service times, the time at which a job ends is known when it arrives.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Hashable
from typing import TYPE_CHECKING

import simpy

from dekag.simulation.policies import CachePolicy, SchedulingPolicy

if TYPE_CHECKING:
    from collections.abc import Sequence


class Station:
    """Servers with one queue, first come, first served.

    Args:
        env: simulated time, s.
        servers: number of servers.

    Attributes:
        busy_s: server time of all jobs so far, s.
        jobs: number of jobs so far.
    """

    def __init__(self, env: simpy.Environment, servers: int = 1) -> None:
        self._env = env
        self._free_s = [0.0] * servers  # a heap
        self.busy_s, self.jobs = 0.0, 0

    def delay(self, service_s: float, after_s: float = 0.0) -> float:
        """Take a place in the queue; returns the time until the job is done, s, to be waited for.

        Args:
            service_s: time that a server takes for it, s.
            after_s: time until it arrives, s; equal for all jobs of a station, so that they keep their order.
        """
        now = self._env.now
        start = max(now + after_s, self._free_s[0])
        heapq.heapreplace(self._free_s, start + service_s)
        self.busy_s += service_s
        self.jobs += 1
        return float(start + service_s - now)


class Cell:
    """The channel uses of a cell, shared among its transmissions by a policy.

    A transmission is complete at the end of the slot in which its last channel use is sent.

    Args:
        env: simulated time, s.
        uses_per_s: channel uses per second that carry data.
        slot_s: duration of a slot, s; 0 for none.
        policy: how transmissions share the cell.

    Attributes:
        sent_uses: channel uses of all transmissions so far.
    """

    def __init__(
        self, env: simpy.Environment, uses_per_s: float, slot_s: float, policy: SchedulingPolicy
    ) -> None:
        self._env, self._rate, self._slot_s, self._policy = env, uses_per_s, slot_s, policy
        self._left: list[float] = []
        self._snr_db: list[float] = []
        self._done: list[simpy.Event] = []
        self._shares: Sequence[float] = ()
        self._since_s, self._version = 0.0, 0
        self.sent_uses = 0.0

    def send(self, channel_uses: float, snr_db: float) -> simpy.Event:
        """An event that comes when so many channel uses have been sent."""
        self._advance()
        event = self._env.event()
        self._left.append(channel_uses)
        self._snr_db.append(snr_db)
        self._done.append(event)
        self.sent_uses += channel_uses
        self._plan()
        return event

    def _advance(self) -> None:
        """Count what has been sent since the shares last changed."""
        passed = (self._env.now - self._since_s) * self._rate
        self._since_s = self._env.now
        if passed > 0:
            for index, fraction in enumerate(self._shares):
                self._left[index] -= fraction * passed

    def _plan(self) -> None:
        """Set the shares, and wake up when the next transmission ends."""
        self._version += 1
        if not self._left:
            self._shares = ()
            return
        self._shares = self._policy.shares(self._left, self._snr_db)
        wait_s = min(
            max(left, 0.0) / (fraction * self._rate)
            for left, fraction in zip(self._left, self._shares, strict=True)
            if fraction > 0
        )
        version = self._version
        wake = self._env.timeout(wait_s)
        wake.callbacks.append(lambda _: self._end(version))

    def _end(self, version: int) -> None:
        if version != self._version:  # shares have changed in the meantime
            return
        self._advance()
        # what is left after rounding is less than a nanosecond's worth
        finished = [i for i, left in enumerate(self._left) if left <= 1e-9 * self._rate]
        for index in reversed(finished):
            event = self._done.pop(index)
            del self._left[index], self._snr_db[index]
            event.succeed()
        self._plan()

    def until_slot(self) -> float:
        """Time until the end of the present slot, s; 0 if one has just ended."""
        if self._slot_s <= 0:
            return 0.0
        slots = self._env.now / self._slot_s
        return max((math.ceil(slots - 1e-6) - slots) * self._slot_s, 0.0)


class Storage:
    """Entries of known sizes within a capacity; a policy decides what makes room.

    Args:
        capacity: bytes in all.
        policy: gives priorities; the lowest is dropped first.

    Attributes:
        used: bytes that are taken.
        dropped: entries that made room for others so far.
    """

    def __init__(self, capacity: float, policy: CachePolicy) -> None:
        self._capacity, self._policy = capacity, policy
        self._entries: dict[Hashable, tuple[float, int, float]] = {}  # size, uses, priority
        self._heap: list[tuple[float, int, Hashable]] = []  # with outdated pairs, which are skipped
        self._count = 0
        self.used, self.dropped = 0.0, 0

    def __contains__(self, key: Hashable) -> bool:
        return key in self._entries

    def use(self, key: Hashable, now_s: float) -> bool:
        """Whether the entry is there; if so, it counts as used."""
        if key not in self._entries:
            return False
        size, uses, _ = self._entries[key]
        self._set(key, size, uses + 1, now_s)
        return True

    def add(self, key: Hashable, size: float, now_s: float) -> None:
        """Store an entry and drop others if necessary; one that is larger than the capacity is not stored."""
        if key in self._entries or size > self._capacity:
            return
        while self.used + size > self._capacity:
            self._drop()
        self.used += size
        self._set(key, size, 1, now_s)

    def _set(self, key: Hashable, size: float, uses: int, now_s: float) -> None:
        priority = self._policy.priority(now_s, uses, size)
        self._entries[key] = (size, uses, priority)
        self._count += 1
        heapq.heappush(self._heap, (priority, self._count, key))
        if len(self._heap) > 4 * len(self._entries) + 64:  # most pairs are outdated
            self._heap = [(entry[2], n, each) for n, (each, entry) in enumerate(self._entries.items())]
            heapq.heapify(self._heap)
            self._count = len(self._heap)

    def _drop(self) -> None:
        while True:
            priority, _, key = heapq.heappop(self._heap)
            if key in self._entries and self._entries[key][2] == priority:
                self.used -= self._entries.pop(key)[0]
                self.dropped += 1
                return
