"""The table of deliveries: what one delivery costs and what quality it has, as the real chain measured it.

`dekag bench deliveries` writes the table from link reports. The simulation interpolates it over the SNR and
generates no image.

Example:
    >>> from dekag.simulation.deliveries import DeliveryTable
    >>> table = DeliveryTable.load()
    >>> [round(1 / cbr) for cbr in table.cbrs]
    [768, 384, 192, 96]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dekag.documents import read_json
from dekag.errors import InvalidInputError
from dekag.paths import RESULTS

CITY, NAME = "city", "deliveries"
SHIPPED_TABLE = RESULTS / CITY / f"bench-{NAME}.json"
Array = npt.NDArray[np.float64]
KINDS = ("known", "taught", "untaught")


@dataclass(frozen=True)
class DeliveryTable:
    """Cost and quality of single deliveries, means over images.

    Attributes:
        snrs_db: (S,) mean SNRs of the grid, dB, rising.
        cbrs: (R,) rates of semantic deliveries, channel uses per source value, rising.
        psnr_db: (S, R) PSNR of a received latent's image against the sent one, dB.
        psnr_spread_db: (S, R) standard deviation of it over images and fades, dB.
        channel_uses: (R,) channel uses of a semantic delivery.
        file_channel_uses: (S,) channel uses of a file.
        file_decoded: (S,) fraction of files that decode.
        file_psnr_db: PSNR of a decoded file against the cloud's image, dB.
        file_bytes: (F,) sizes of files, bytes, sorted.
        request_bytes: bytes that a file takes on the backhaul beyond its own size.
        update_bytes: (U,) sizes of knowledge updates, bytes, sorted.
        consistency: (S, R) consistency of a received image with the cloud's, by what the edge knew of its
            topic: KINDS.
        file_consistency: that of a decoded file.
        seconds: compute time by stage, s: "edge.generate" (without an update), "edge.generate_taught" (with
            one), "edge.encode", "edge.modulate", "cloud.generate", "user.latent" (decode and render),
            "user.file", "distil"; each includes what the service does around it, such as serialising
            messages.
        source: what wrote the table: command, commit, date, machine, config.
    """

    snrs_db: Array
    cbrs: Array
    psnr_db: Array
    psnr_spread_db: Array
    channel_uses: Array
    file_channel_uses: Array
    file_decoded: Array
    file_psnr_db: float
    file_bytes: Array
    request_bytes: float
    update_bytes: Array
    consistency: Mapping[str, Array]
    file_consistency: float
    seconds: Mapping[str, float]
    source: Mapping[str, Any]

    @classmethod
    def load(cls, path: Path = SHIPPED_TABLE) -> DeliveryTable:
        """The table in a file of `dekag bench deliveries`; that of the shipped models by default.

        Raises:
            FileError, DocumentError: the file cannot be read.
            InvalidInputError: it is not such a file, or its grid is incomplete.
        """
        content = read_json(path)
        try:
            return cls._from_rows(content["rows"], {k: v for k, v in content.items() if k != "rows"})
        except (KeyError, TypeError, IndexError, ValueError) as error:
            raise InvalidInputError(
                str(path), "a table that `dekag bench deliveries` wrote", error
            ) from error

    @classmethod
    def _from_rows(cls, rows: Sequence[Mapping[str, Any]], source: Mapping[str, Any]) -> DeliveryTable:
        deliveries = [row for row in rows if row["kind"] == "delivery"]
        # quality of the transmission does not depend on whether the topic is taught, so all rows count
        semantic = [row for row in deliveries if row["delivery"] == "semantic"]
        files = [row for row in deliveries if row["delivery"] == "conventional"]
        snrs = sorted({row["snr_db"] for row in semantic})
        parts = sorted({row["cbr_parts"] for row in semantic}, reverse=True)
        cells = [
            [[r for r in semantic if (r["snr_db"], r["cbr_parts"]) == (snr, part)] for part in parts]
            for snr in snrs
        ]
        by_snr = [[row for row in files if row["snr_db"] == snr] for snr in snrs]
        sizes = {row["prompt"]: row["file_bytes"] for row in files}
        overhead = [row["backhaul_bytes"] - row["file_bytes"] for row in files]
        decoded_psnr = [row["psnr_db"] for row in files if row["decoded"]]

        def kind_of(row: Mapping[str, Any]) -> str:
            if row["topic"] == "known":
                return "known"
            return "taught" if row["taught"] else "untaught"

        cpu = {row["phase"]: row for row in rows if row["kind"] == "cpu"}

        def per_request(phase: str, service: str) -> float:
            return float(cpu[phase][service] / cpu[phase]["requests"])

        def received(phase: str) -> float:
            # the user's process also writes a PNG and measures the PSNR
            own = {k: v for k, v in cpu[phase]["durations_s"].items() if k.startswith("user.")}
            needed = own["user.decode"] + own["user.render"]
            return float(per_request(phase, "user") * needed / sum(own.values()))

        def cell_of(statistic: Any, name: str, kinds: Sequence[str] = KINDS) -> Array:
            values = [
                [statistic([row[name] for row in cell if kind_of(row) in kinds]) for cell in line]
                for line in cells
            ]
            return np.array(values)

        return cls(
            snrs_db=np.array(snrs, float),
            cbrs=np.array([1 / part for part in parts]),
            psnr_db=cell_of(np.mean, "psnr_db"),
            psnr_spread_db=cell_of(np.std, "psnr_db"),
            channel_uses=cell_of(np.mean, "channel_uses")[0],
            file_channel_uses=np.array([np.mean([row["channel_uses"] for row in own]) for own in by_snr]),
            file_decoded=np.array([np.mean([row["decoded"] for row in own]) for own in by_snr]),
            file_psnr_db=float(np.mean(decoded_psnr)),
            file_bytes=np.sort(np.array(list(sizes.values()), float)),
            request_bytes=float(np.median(overhead)),
            update_bytes=np.sort(np.array([row["bytes"] for row in rows if row["kind"] == "update"], float)),
            consistency={kind: cell_of(np.mean, "consistency", [kind]) for kind in KINDS},
            file_consistency=float(
                np.mean([row["consistency"] for row in files if row["consistency"] is not None])
            ),
            seconds={
                "edge.generate": per_request("latent", "edge") - per_request("cached latent", "edge"),
                "edge.generate_taught": per_request("taught latent", "edge")
                - per_request("cached latent", "edge"),
                "edge.encode": per_request("cached latent", "edge"),
                "edge.modulate": per_request("cached file", "edge"),
                "cloud.generate": per_request("file", "cloud"),
                "user.latent": received("cached latent"),
                "user.file": received("cached file"),
                "distil": float(np.mean([row["seconds"] for row in rows if row["kind"] == "distillation"])),
            },
            source=dict(source),
        )

    def semantic_psnr_db(self, snr_db: Array, rate: npt.NDArray[np.intp]) -> tuple[Array, Array]:
        """Mean PSNR and its standard deviation, dB, (n,) each, at SNRs (n,) and indices of rates (n,).

        Between the SNRs of the grid it is linear; beyond them it stays as it is at the end.
        """
        return self._at(self.psnr_db, snr_db, rate), self._at(self.psnr_spread_db, snr_db, rate)

    def semantic_consistency(self, kind: str, snr_db: Array, rate: npt.NDArray[np.intp]) -> Array:
        """(n,) consistency of images of a kind of KINDS at SNRs (n,), dB, and indices of rates (n,)."""
        return self._at(self.consistency[kind], snr_db, rate)

    def _at(self, grid: Array, snr_db: Array, rate: npt.NDArray[np.intp]) -> Array:
        """A grid (S, R) at SNRs (n,), dB, and indices of rates (n,)."""
        values = np.empty(len(snr_db))
        for index in range(len(self.cbrs)):
            own = rate == index
            values[own] = np.interp(snr_db[own], self.snrs_db, grid[:, index])
        return values

    def file_uses(self, snr_db: Array) -> Array:
        """(n,) channel uses of a file of mean size at SNRs (n,), dB."""
        return np.interp(snr_db, self.snrs_db, self.file_channel_uses)

    def file_success(self, snr_db: Array) -> Array:
        """(n,) probability that a file decodes at SNRs (n,), dB."""
        return np.interp(snr_db, self.snrs_db, self.file_decoded)
