"""Total cost of the images delivered since this gateway started, for `GET /v1/traffic`."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field

from dekag.api.schemas import BackhaulPoint, DeliveryTraffic, HopTraffic, LinkReport, Savings, Traffic

_BACKHAUL = "cloud-edge"
_MOST_POINTS = 256


@dataclass
class _Mean:
    """The mean of what was measured."""

    total: float = 0.0
    count: int = 0

    def add(self, value: float | None) -> None:
        if value is not None:
            self.total += value
            self.count += 1

    @property
    def value(self) -> float | None:
        return self.total / self.count if self.count else None


@dataclass
class _Total:
    images: int = 0
    decoded: int = 0
    channel_uses: int = 0
    sent_bytes: Counter[str] = field(default_factory=Counter)  # by hop
    psnr_db: _Mean = field(default_factory=_Mean)
    consistency: _Mean = field(default_factory=_Mean)

    def add(self, report: LinkReport, consistency: float | None = None) -> None:
        self.images += 1
        self.decoded += report.decoded
        self.channel_uses += report.channel_uses + report.pilot_uses
        for hop in report.hops:
            self.sent_bytes[hop.hop] += hop.sent_bytes
        self.psnr_db.add(report.psnr_db)
        self.consistency.add(consistency)


class UsageTotals:
    """Sums over link reports, for each delivery.

    What semantic delivery saves is computed from generated images alone: clients' own pictures have any size.
    """

    def __init__(self) -> None:
        self._since = time.time()
        self._totals: dict[str, _Total] = {}
        self._generated: dict[str, _Total] = {}  # without clients' own pictures
        self._curve: list[BackhaulPoint] = []  # of each `_every`-th image
        self._every = 1

    def add(self, report: LinkReport, consistency: float | None = None) -> None:
        """Counts one image.

        Args:
            report: of its delivery.
            consistency: with the cloud's image; None if it was not measured.
        """
        self._totals.setdefault(report.delivery, _Total()).add(report)
        if report.picture is not None:
            return
        total = self._generated.setdefault(report.delivery, _Total())
        total.add(report, consistency)
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
        semantic = self._generated.get("semantic")
        if semantic is not None and (not curve or curve[-1].images < semantic.images):
            curve.append(_point(semantic))
        return Traffic(since=self._since, deliveries=deliveries, saved=self._saved(), backhaul=curve)

    def _saved(self) -> Savings | None:
        semantic, conventional = self._generated.get("semantic"), self._generated.get("conventional")
        if semantic is None or conventional is None:
            return None
        scale = semantic.images / conventional.images
        return Savings(
            channel_uses_spent=semantic.channel_uses,
            channel_uses_instead=round(scale * conventional.channel_uses),
            backhaul_bytes_spent=semantic.sent_bytes[_BACKHAUL],
            backhaul_bytes_instead=round(scale * conventional.sent_bytes[_BACKHAUL]),
            psnr_db_spent=semantic.psnr_db.value,
            psnr_db_instead=conventional.psnr_db.value,
            consistency_spent=semantic.consistency.value,
            consistency_instead=conventional.consistency.value,
        )


def _point(total: _Total) -> BackhaulPoint:
    return BackhaulPoint(images=total.images, sent_bytes=total.sent_bytes[_BACKHAUL])
