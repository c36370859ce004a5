"""What the images that were answered have cost, summed up since this gateway started."""

from __future__ import annotations

import time

from services.gateway.schemas import Delivery, DeliveryTraffic, HopTraffic, LinkReport, Savings, Traffic

_BACKHAUL = "cloud-edge"


class TrafficTotals:
    """Sums over link reports, for each delivery."""

    def __init__(self) -> None:
        self._since = time.time()
        self._deliveries: dict[Delivery, DeliveryTraffic] = {}

    def add(self, report: LinkReport) -> None:
        """Counts one image."""
        total = self._deliveries.setdefault(
            report.delivery, DeliveryTraffic(images=0, decoded=0, channel_uses=0, hops=[])
        )
        total.images += 1
        total.decoded += report.decoded
        total.channel_uses += report.channel_uses + report.pilot_uses
        sent = {each.hop: each for each in total.hops}
        for each in report.hops:
            if each.hop in sent:
                sent[each.hop].sent_bytes += each.sent_bytes
            else:
                total.hops.append(HopTraffic(hop=each.hop, sent_bytes=each.sent_bytes))

    def traffic(self) -> Traffic:
        """The sums as they are now."""
        return Traffic(since=self._since, deliveries=dict(self._deliveries), saved=self._saved())

    def _saved(self) -> Savings | None:
        ours, theirs = self._deliveries.get("semantic"), self._deliveries.get("conventional")
        if ours is None or theirs is None:
            return None
        share = ours.images / theirs.images
        return Savings(
            channel_uses_spent=ours.channel_uses,
            channel_uses_instead=round(share * theirs.channel_uses),
            backhaul_bytes_spent=_backhaul(ours),
            backhaul_bytes_instead=round(share * _backhaul(theirs)),
        )


def _backhaul(total: DeliveryTraffic) -> int:
    return sum(each.sent_bytes for each in total.hops if each.hop == _BACKHAUL)
