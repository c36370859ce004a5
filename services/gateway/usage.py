"""Total cost of the images delivered since this gateway started, for `GET /v1/traffic`."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field

from dekag.api.schemas import BackhaulPoint, DeliveryTraffic, HopTraffic, LinkReport, Savings, Traffic

_BACKHAUL = "cloud-edge"
_MOST_POINTS = 256


@dataclass
class _Total:
    images: int = 0
    decoded: int = 0
    channel_uses: int = 0
    sent_bytes: Counter[str] = field(default_factory=Counter)  # by hop


class UsageTotals:
    """Sums over link reports, for each delivery."""

    def __init__(self) -> None:
        self._since = time.time()
        self._totals: dict[str, _Total] = {}
        self._curve: list[BackhaulPoint] = []  # of each `_every`-th image
        self._every = 1

    def add(self, report: LinkReport) -> None:
        """Counts one image."""
        total = self._totals.setdefault(report.delivery, _Total())
        total.images += 1
        total.decoded += report.decoded
        total.channel_uses += report.channel_uses + report.pilot_uses
        for hop in report.hops:
            total.sent_bytes[hop.hop] += hop.sent_bytes
        if report.delivery == "semantic" and total.images % self._every == 0:
            self._curve.append(_point(total))
            if len(self._curve) > _MOST_POINTS:
                self._curve = self._curve[1::2]
                self._every *= 2

    def traffic(self) -> Traffic:
        """The current sums."""
        deliveries = {
            delivery: DeliveryTraffic(
                images=total.images,
                decoded=total.decoded,
                channel_uses=total.channel_uses,
                hops=[HopTraffic(hop=hop, sent_bytes=sent) for hop, sent in total.sent_bytes.items()],
            )
            for delivery, total in self._totals.items()
        }
        curve = list(self._curve)
        semantic = self._totals.get("semantic")
        if semantic is not None and (not curve or curve[-1].images < semantic.images):
            curve.append(_point(semantic))
        return Traffic(since=self._since, deliveries=deliveries, saved=self._saved(), backhaul=curve)

    def _saved(self) -> Savings | None:
        semantic, conventional = self._totals.get("semantic"), self._totals.get("conventional")
        if semantic is None or conventional is None:
            return None
        scale = semantic.images / conventional.images
        return Savings(
            channel_uses_spent=semantic.channel_uses,
            channel_uses_instead=round(scale * conventional.channel_uses),
            backhaul_bytes_spent=semantic.sent_bytes[_BACKHAUL],
            backhaul_bytes_instead=round(scale * conventional.sent_bytes[_BACKHAUL]),
        )


def _point(total: _Total) -> BackhaulPoint:
    return BackhaulPoint(images=total.images, sent_bytes=total.sent_bytes[_BACKHAUL])
