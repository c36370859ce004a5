// Quality against SNR for what is shown: the same request over the same channel at other SNRs, one after another.

import { askJson } from "./api.js";
import { TITLES } from "./cards.js";
import { curves } from "./charts.js";
import { exact, find, make, number, row } from "./dom.js";

const SNRS_DB = [-10, -5, 0, 5, 10, 15, 20];
const SAID = {
  consistency: "Consistency of the received image with the cloud's: 1 is the same content. It falls with noise, and where " +
    "the edge draws something else than the cloud would.",
  psnr: "PSNR of the received image against the sent one, dB: noise alone, whatever the edge has drawn.",
};
const box = find("#curve");
let series = new Map(); // delivery -> [{snr_db, consistency, psnr}], by SNR
let snr_db = 5;
let onChoice = () => {};

const radios = () => [...document.querySelectorAll("#measures input")];
const measure = () => radios().find((radio) => radio.checked).value;

function draw() {
  const name = measure();
  find("#measure-said").textContent = SAID[name];
  const lines = [...series].map(([delivery, points]) => ({
    delivery,
    title: TITLES[delivery],
    points: points.map((point) => ({ x: point.snr_db, y: point[name] })).filter(({ y }) => y !== null),
  }));
  box.replaceChildren(curves(lines, {
    width: box.clientWidth || 640,
    from: SNRS_DB[0], to: SNRS_DB.at(-1), now: snr_db,
    unit: name === "psnr" ? "PSNR, dB" : "consistency with the cloud",
    range: name === "psnr" ? null : [0, 1],
    onChoice,
  }));
  const digits = name === "psnr" ? 1 : 2;
  const head = ["SNR, dB", ...[...series.keys()].map((delivery) => TITLES[delivery])];
  find("#curve-head").replaceChildren(make("tr", {}, ...head.map((text) => make("th", { scope: "col" }, text))));
  const all = [...new Set([...series.values()].flat().map((point) => point.snr_db))].sort((a, b) => a - b);
  find("#curve-rows").replaceChildren(...all.map((snr) =>
    row(exact(snr), ...[...series.values()].map((points) =>
      number(points.find((point) => point.snr_db === snr)?.[name], digits)))));
}

/** Marks the SNR of the form. */
export function mark(db) {
  snr_db = db;
  draw();
}

/**
 * Measures the curves. `bodyOf(delivery, snr_db)` is the request at an SNR; `onFirst(delivery, image)` gets the images at
 * the present SNR, which are measured first, with their consistency.
 */
export async function measureAll({ deliveries, path, bodyOf, now, own, signal, onFirst }) {
  series = new Map(deliveries.map((delivery) => [delivery, []]));
  snr_db = now;
  for (const radio of radios()) radio.disabled = own && radio.value === "consistency";
  if (own) find("#measures [value=psnr]").checked = true;
  const rest = SNRS_DB.filter((db) => db !== now).sort((a, b) => Math.abs(a - now) - Math.abs(b - now));
  const all = find("#curve-on").checked ? [now, ...rest] : [now];
  const status = find("#curve-status");
  draw();
  for (const [i, db] of all.entries()) {
    status.textContent = `Measuring at ${exact(db)} dB: ${i + 1} of ${all.length}`;
    await Promise.all(deliveries.map(async (delivery) => {
      const image = (await askJson("POST", path, bodyOf(delivery, db), signal)).data[0];
      signal.throwIfAborted();
      if (db === now) onFirst(delivery, image);
      const lost = !image.link_report.decoded;
      const point = { snr_db: db, psnr: image.link_report.psnr_db, consistency: lost ? null : image.consistency?.mean ?? null };
      series.get(delivery).push(point);
      series.get(delivery).sort((a, b) => a.snr_db - b.snr_db);
    }));
    const none = [...series.values()].flat().every((point) => point.consistency === null);
    if (none && !own) {
      for (const radio of radios()) radio.disabled = radio.value === "consistency"; // a profile without metric encoders
      find("#measures [value=psnr]").checked = true;
    }
    draw();
  }
  status.textContent = all.length > 1 ? `Measured at ${all.length} SNRs.` : "";
}

/** Says why the curve has ended early. */
export function fail(error) {
  find("#curve-status").textContent = `Not complete: ${error.message}`;
}

/** Draws the empty chart; `chosen(snr_db)` is called with the SNR of a click into it. */
export function start(chosen) {
  onChoice = chosen;
  find("#measures").addEventListener("change", draw);
  new ResizeObserver(draw).observe(find("#quality"));
  draw();
}
