// One card for each delivery: the sent image, the received image, and the link report.

import { constellation, fading } from "./charts.js";
import { find, make, number, row } from "./dom.js";

export const TITLES = {
  semantic: "Semantic, aligned",
  "semantic-unaligned": "Semantic, unaligned",
  conventional: "Conventional",
};
const SENT = {
  semantic: "edge, aligned",
  "semantic-unaligned": "edge, unaligned",
  conventional: "cloud",
};

const cards = new Map(); // delivery -> {element, image}
const seconds = (report) => report.stages.reduce((sum, stage) => sum + stage.seconds, 0);
const hop = (report, name) => report.hops.find((each) => each.hop === name)?.sent_bytes ?? 0;

/** Shows a card for each of these deliveries, in this order, and removes all others. */
export function lay(deliveries) {
  for (const [delivery, { element }] of cards)
    if (!deliveries.includes(delivery)) {
      element.remove();
      cards.delete(delivery);
    }
  for (const delivery of deliveries) {
    if (!cards.has(delivery)) {
      const element = find("#card").content.cloneNode(true).firstElementChild;
      element.dataset.delivery = delivery;
      find("h3", element).textContent = TITLES[delivery];
      cards.set(delivery, { element, image: null });
    }
    const { element } = cards.get(delivery);
    element.classList.add("busy");
    element.setAttribute("aria-busy", "true");
    find("#cards").append(element);
  }
}

/** Fills the card of a delivery. Without an image, it keeps its previous image; a card without one is removed. */
export function fill(delivery, prompt, image) {
  const card = cards.get(delivery);
  if (!card) return;
  card.element.classList.remove("busy");
  card.element.removeAttribute("aria-busy");
  if (!image) {
    if (!card.image) {
      card.element.remove();
      cards.delete(delivery);
    }
    return;
  }
  card.image = image;
  const { link_report: report, details } = image;
  show(find(".sent", card.element), details?.reference_b64_json, `sent: ${prompt}`,
    report.picture ? "your picture" : SENT[delivery]);
  const said = report.decoded ? "received" : "nothing: decoding failed";
  show(find(".received", card.element), image.b64_json, `received: ${prompt}`, said);
  find(".facts", card.element).textContent = facts(image);
  if (details) {
    const { sent, received, equalized } = details.constellation;
    find(".constellations", card.element).replaceChildren(
      constellation(sent, "as sent"), constellation(received, "as received"), constellation(equalized, "as equalised"));
  }
  find(".fading", card.element).replaceChildren(report.gains.length ? fading(report.gains) : "ideal channel");
  find(".times", card.element).replaceChildren(...times(report.stages));
  compare();
}

function show(figure, base64, alt, caption) {
  const img = find("img", figure);
  figure.classList.toggle("lost", !base64);
  img.alt = base64 ? alt : "";
  if (base64) img.src = `data:image/png;base64,${base64}`;
  find("figcaption", figure).textContent = caption;
}

function facts({ consistency, link_report: report }) {
  const knowledge = report.knowledge.map((each) => `${each.topic} v${each.version}`).join(", ");
  return [
    report.psnr_db === null ? "not decoded" : `PSNR ${number(report.psnr_db, 1)} dB`,
    consistency ? `consistency with the cloud ${number(consistency.mean, 2)}` : "",
    `${number(report.channel_uses + report.pilot_uses)} channel uses`,
    report.instantaneous_snr_db === null ? "" : `SNR with fading ${number(report.instantaneous_snr_db, 1)} dB`,
    report.expected_psnr_db === null ? "" : `expected ${number(report.expected_psnr_db, 1)} dB`,
    ...(report.picture ? described(report.picture) : []),
    report.coding ? `${number(report.coding.payload_bytes)} B of ${report.image_format}` : "",
    knowledge ? `generated with ${knowledge}` : "",
    ...Object.entries(report.prompt_read)
      .filter(([, read]) => read.tokens > read.tokens_at_once)
      .map(([side, read]) => `the ${side} read ${read.tokens} tokens, ${read.tokens_at_once} at a time`),
    report.cached ? "from the cache" : "",
  ].filter(Boolean).join(" · ");
}

/** What was found in a picture's file, and how it was sent. */
function described(picture) {
  const tiles = (picture.columns ?? 0) * (picture.rows ?? 0);
  return [
    `${picture.width}×${picture.height} ${picture.format}`,
    ...picture.notes,
    tiles ? `sent as ${tiles} ${tiles === 1 ? "tile" : "tiles"} of ${picture.tile_width}×${picture.tile_height}` : "",
    picture.ssim === null ? "" : `SSIM ${number(picture.ssim, 2)}`,
    picture.autoencoder_psnr_db === null ? "" : `the autoencoder alone: ${number(picture.autoencoder_psnr_db, 1)} dB`,
  ];
}

function times(stages) {
  const most = Math.max(...stages.map((stage) => stage.seconds));
  return stages.flatMap((stage) => {
    const length = make("span", { class: "length" });
    length.style.width = `${(100 * stage.seconds) / most}%`;
    return [make("span", {}, stage.stage), length, make("span", {}, `${number(1000 * stage.seconds)} ms`)];
  });
}

function compare() {
  const images = [...cards].flatMap(([delivery, { image }]) => (image ? [[delivery, image]] : []));
  const reports = images.map(([delivery, image]) => [delivery, image.link_report]);
  find("#comparison").hidden = reports.length === 0;
  find("#costs").replaceChildren(
    ...images.map(([delivery, { consistency, link_report: report }]) =>
      row(TITLES[delivery], number(consistency?.mean, 2), number(report.channel_uses + report.pilot_uses), number(hop(report, "cloud-edge")),
        report.psnr_db === null ? "not decoded" : `${number(report.psnr_db, 1)} dB`, number(seconds(report), 2))));
  const of = Object.fromEntries(reports);
  const [ours, theirs] = [of.semantic, of.conventional];
  find("#saving").textContent = ours && theirs
    ? `The ${theirs.image_format} file takes ${number(theirs.channel_uses / (ours.channel_uses + ours.pilot_uses), 1)} times ` +
      `the channel uses of the latent; ${theirs.psnr_db === null ? "its decoding failed" : `its PSNR is ${number(theirs.psnr_db, 1)} dB instead of ${number(ours.psnr_db, 1)} dB`}.`
    : "";
}
