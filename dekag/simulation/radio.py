"""SNR by place: cells in hexagons, and path loss and shadowing by 3GPP TR 38.901, table 7.4.1-1.

Places are the points of a raster. Each site has one antenna that radiates equally in all directions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from scipy.fft import fft2, next_fast_len
from scipy.special import ndtr

if TYPE_CHECKING:
    from dekag.simulation.city import Radio

Array = npt.NDArray[np.float64]
Floats = npt.NDArray[np.float32]
LIGHT_M_S = 299_792_458.0
ENVIRONMENT_HEIGHT_M = 1.0  # effective environment height h_E of TR 38.901 for users at 1.5 m
MIN_DISTANCE_M = 10.0  # below it the formulas do not hold
LOS_CORRELATION_M = 50.0  # table 7.6.3.1-2
MARGIN_M = 250.0  # raster beyond the outermost sites


@dataclass(frozen=True)
class Scenario:
    """A scenario of TR 38.901.

    Attributes:
        site_m: height of the antennas, m.
        shadow_los_db, shadow_nlos_db: standard deviations of the shadowing, dB.
        correlation_m: distance at which the correlation of the shadowing is 1/e, m (table 7.5-6, NLOS).
        los_decay_m: distance in the exponent of the probability of a line of sight, m (table 7.4.2-1).
    """

    site_m: float
    shadow_los_db: float
    shadow_nlos_db: float
    correlation_m: float
    los_decay_m: float


SCENARIOS = {
    "uma": Scenario(25.0, 4.0, 6.0, 50.0, 63.0),
    "umi": Scenario(10.0, 4.0, 7.82, 13.0, 36.0),
}


def los_probability(scenario: str, distance_m: Array) -> Array:
    """Probability of a line of sight to an outdoor user below 13 m, by horizontal distance, m."""
    d = np.maximum(distance_m, 1e-9)
    decayed = np.exp(-d / SCENARIOS[scenario].los_decay_m) * (1 - 18 / d)
    return np.where(d <= 18, 1.0, 18 / d + decayed)


def path_loss_db(
    scenario: str, distance_m: Array, los: npt.NDArray[np.bool_], *, carrier_hz: float, user_m: float = 1.5
) -> Array:
    """Path loss of TR 38.901 UMa or UMi (street canyon), dB.

    Args:
        scenario: "uma" or "umi".
        distance_m: horizontal distances, m; less than 10 m counts as 10 m.
        los: whether there is a line of sight, of the same shape.
        carrier_hz: carrier frequency, Hz; 0.5 to 100 GHz.
        user_m: height of the user, m.

    Example:
        >>> import numpy as np
        >>> from dekag.simulation.radio import path_loss_db
        >>> round(float(path_loss_db("uma", np.array([100.0]), np.array([True]), carrier_hz=2e9)[0]), 1)
        78.3
    """
    site_m = SCENARIOS[scenario].site_m
    d2 = np.maximum(distance_m, MIN_DISTANCE_M)
    height = site_m - user_m
    d3 = np.hypot(d2, height)
    log_d, log_f = np.log10(d3), np.log10(carrier_hz / 1e9)
    break_m = 4 * (site_m - ENVIRONMENT_HEIGHT_M) * (user_m - ENVIRONMENT_HEIGHT_M) * carrier_hz / LIGHT_M_S
    bend = np.log10(break_m**2 + height**2)
    if scenario == "uma":
        near = 28.0 + 22 * log_d + 20 * log_f
        far = 28.0 + 40 * log_d + 20 * log_f - 9 * bend
        without = 13.54 + 39.08 * log_d + 20 * log_f - 0.6 * (user_m - 1.5)
    else:
        near = 32.4 + 21 * log_d + 20 * log_f
        far = 32.4 + 40 * log_d + 20 * log_f - 9.5 * bend
        without = 22.4 + 35.3 * log_d + 21.3 * log_f - 0.3 * (user_m - 1.5)
    with_los = np.where(d2 <= break_m, near, far)
    return np.asarray(np.where(los, with_los, np.maximum(with_los, without)))


def hexagons(cells: int, distance_m: float) -> Array:
    """(cells, 2) places of sites in a hexagonal grid, m, the nearest to the origin first."""
    reach = int(np.ceil(np.sqrt(cells))) + 2
    rows, columns = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    x = distance_m * (columns + 0.5 * rows)
    y = distance_m * np.sqrt(3) / 2 * rows
    places = np.stack([x.ravel(), y.ravel()], axis=1)
    order = np.lexsort((places[:, 1], places[:, 0], np.round(np.hypot(places[:, 0], places[:, 1]), 6)))
    return np.asarray(places[order[:cells]])


class CorrelatedFields:
    """Gaussian fields of mean 0 and variance 1 whose correlation over a distance d is exp(-d / distance_m).

    They are drawn in the frequency domain on a raster of twice the size, so that opposite edges are
    independent. Real and imaginary part of one transform are two independent fields.

    Args:
        shape: rows and columns of the raster.
        step_m: distance of neighbouring points, m.
        distance_m: distance at which the correlation is 1/e, m.
    """

    def __init__(self, shape: tuple[int, int], step_m: float, distance_m: float) -> None:
        self._shape = shape
        rows, columns = (next_fast_len(2 * side) for side in shape)
        dy = np.minimum(np.arange(rows), rows - np.arange(rows)) * step_m
        dx = np.minimum(np.arange(columns), columns - np.arange(columns)) * step_m
        covariance = np.exp(-np.hypot(dy[:, None], dx[None]) / distance_m)
        spectrum = np.maximum(fft2(covariance).real, 0)
        self._amplitude = np.sqrt(spectrum / spectrum.mean() / spectrum.size).astype(np.float32)

    def draw(self, rng: np.random.Generator) -> tuple[Floats, Floats]:
        """Two independent fields, (rows, columns) each."""
        noise = rng.standard_normal((2, *self._amplitude.shape), np.float32)
        field = fft2((noise[0] + 1j * noise[1]) * self._amplitude)
        inner = field[: self._shape[0], : self._shape[1]]
        return np.asarray(inner.real), np.asarray(inner.imag)


@dataclass(frozen=True)
class RadioMap:
    """Best cell and its SNR at each point of the raster.

    Attributes:
        sites: (cells, 2) places of the sites, m.
        origin: (2,) place of the first point, m.
        step_m: distance of neighbouring points, m.
        cell: (rows, columns) cell with the strongest signal.
        snr_db: (rows, columns) its mean signal over noise and interference, dB.
    """

    sites: Array
    origin: Array
    step_m: float
    cell: npt.NDArray[np.int32]
    snr_db: npt.NDArray[np.float32]

    @classmethod
    def draw(cls, radio: Radio, rng: np.random.Generator) -> RadioMap:
        """A map with random shadowing and lines of sight; each is correlated over places, not over sites."""
        scenario = SCENARIOS[radio.scenario]
        sites = hexagons(radio.cells, radio.site_distance_m)
        low, high = sites.min(0) - MARGIN_M, sites.max(0) + MARGIN_M
        columns, rows = (np.ceil((high - low) / radio.raster_m).astype(int) + 1).tolist()
        x = low[0] + radio.raster_m * np.arange(columns)
        y = low[1] + radio.raster_m * np.arange(rows)
        best_mw = np.zeros((rows, columns), np.float32)
        total_mw = np.zeros((rows, columns), np.float32)
        cell = np.zeros((rows, columns), np.int32)
        sight_fields = CorrelatedFields((rows, columns), radio.raster_m, LOS_CORRELATION_M)
        shadow_fields = CorrelatedFields((rows, columns), radio.raster_m, scenario.correlation_m)
        sights = shadows = (np.zeros(0, np.float32),) * 2
        for index, (site_x, site_y) in enumerate(sites):
            distance = np.hypot(x[None] - site_x, y[:, None] - site_y)
            if index % 2 == 0:
                sights, shadows = sight_fields.draw(rng), shadow_fields.draw(rng)
            los = ndtr(sights[index % 2]) < los_probability(radio.scenario, distance)
            spread_db = np.where(los, scenario.shadow_los_db, scenario.shadow_nlos_db)
            shadow_db = spread_db * shadows[index % 2]
            loss = path_loss_db(radio.scenario, distance, los, carrier_hz=radio.carrier_hz)
            received_mw = 10 ** ((radio.power_dbm + radio.antenna_gain_db - loss + shadow_db) / 10)
            total_mw += received_mw
            stronger = received_mw > best_mw
            best_mw[stronger] = received_mw[stronger]
            cell[stronger] = index
        noise_mw = 10 ** ((-174 + 10 * np.log10(radio.carrier_bandwidth_hz) + radio.noise_figure_db) / 10)
        interference_mw = radio.interference * np.maximum(total_mw - best_mw, 0)
        snr_db = 10 * np.log10(best_mw / (noise_mw + interference_mw))
        return cls(sites, low, radio.raster_m, cell, snr_db.astype(np.float32))

    def at(self, places: Array) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
        """Cell (n,) and SNR (n,), dB, at places (n, 2), m; a place outside counts as the nearest point."""
        index = np.rint((places - self.origin) / self.step_m).astype(int)
        rows, columns = self.cell.shape
        row, column = np.clip(index[:, 1], 0, rows - 1), np.clip(index[:, 0], 0, columns - 1)
        return self.cell[row, column], self.snr_db[row, column]
