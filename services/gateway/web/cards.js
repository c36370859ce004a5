// One card for each delivery: the image that arrived, its cost and the link report; and the table of all costs.

import { constellation, fading } from "./charts.js";
import { find, make, number, png, row } from "./dom.js";
import { open } from "./full.js";

export const TITLES = {
  "semantic-unaligned": "Semantic, unaligned",
  semantic: "Semantic, aligned",
  equal: "File of equal cost",
  conventional: "Conventional",
};

const INTRODUCTION = find("#saving").textContent; // of four deliveries
const cards = new Map(); // delivery -> {element, image, shown}
const seconds = (report) => report.stages.reduce((sum, stage) => sum + stage.seconds, 0);
const hop = (report, name) => report.hops.find((each) => each.hop === name)?.sent_bytes ?? 0;
const uses = (report) => report.channel_uses + report.pilot_uses;

/** The PSNR of a report, or of a copy of its image, in words; or why there is none. */
export function psnrSaid({ decoded, psnr_db: own }, psnr_db = own) {
  if (psnr_db !== null) return `PSNR ${number(psnr_db, 1)} dB`;
  return decoded ? "PSNR not measured" : "not decoded";
}

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
      const zoom = find(".zoom", element);
      zoom.setAttribute("aria-label", `Enlarge: ${TITLES[delivery]}`);
      zoom.disabled = true; // until its image is there
      zoom.addEventListener("click", () => enlarge(delivery));
      find("details", element).hidden = delivery === "equal";
      cards.set(delivery, { element, image: null });
    }
    const { element } = cards.get(delivery);
    element.classList.add("busy");
    element.setAttribute("aria-busy", "true");
    find("#cards").append(element);
  }
  total();
}

/**
 * Fills the card of a delivery. Without an image, it keeps its previous image; a card without one is removed. For a copy
 * of an image, `also` are facts about the copy, `reference` is the image, and `psnr` is that of the copy against it.
 */
export function fill(delivery, title, image, { also, psnr, reference } = {}) {
  const card = cards.get(delivery);
  if (!card) return;
  const { element } = card;
  element.classList.remove("busy");
  element.removeAttribute("aria-busy");
  if (!image) {
    if (!card.image) {
      element.remove();
      cards.delete(delivery);
    }
    return;
  }
  const { link_report: report, details } = image;
  const psnr_db = psnr === undefined ? report.psnr_db : psnr;
  Object.assign(card, { image, psnr_db, title, facts: facts(image, psnr_db, also), reference: reference ?? details?.reference_b64_json });
  const img = find("img", element);
  find(".received", element).classList.toggle("lost", !image.b64_json);
  img.alt = image.b64_json ? `received: ${title}` : "";
  if (image.b64_json) img.src = png(image.b64_json);
  find(".zoom", element).disabled = !image.b64_json;
  find("figcaption", element).textContent = image.b64_json ? "" : "nothing: decoding failed";
  find(".cost b", element).textContent = number(uses(report));
  find(".facts", element).replaceChildren(...card.facts.map((fact) => make("li", {}, fact)));
  if (details) {
    const { sent, received, equalized } = details.constellation;
    find(".constellations", element).replaceChildren(
      constellation(sent, "as sent"), constellation(received, "as received"), constellation(equalized, "as equalised"));
  }
  find(".fading", element).replaceChildren(report.gains.length ? fading(report.gains) : "ideal channel");
  find(".times", element).replaceChildren(...times(report.stages));
  total();
}

/** Says on a card why it has no image. */
export function explain(delivery, text) {
  const element = cards.get(delivery)?.element;
  if (!element) return;
  cards.get(delivery).image = null;
  element.classList.remove("busy");
  element.removeAttribute("aria-busy");
  find("img", element).removeAttribute("src");
  find(".received", element).classList.add("lost");
  find(".zoom", element).disabled = true;
  find("figcaption", element).textContent = text;
  find(".cost b", element).textContent = "–";
  find(".facts", element).replaceChildren();
  total();
}

/** Offers on a card, with a reason, to ask for its image; `action` is called once. */
export function offer(delivery, reason, label, action) {
  explain(delivery, reason);
  const element = cards.get(delivery)?.element;
  if (!element) return;
  const button = make("button", { type: "button", class: "plain" }, label);
  button.addEventListener("click", () => {
    button.remove();
    element.classList.add("busy");
    element.setAttribute("aria-busy", "true");
    action();
  });
  find("figcaption", element).append(" ", button);
}

/** Adds the consistency with the cloud's image to an image that is shown. */
export function addConsistency(delivery, consistency) {
  const card = cards.get(delivery);
  if (!card?.image || !consistency) return;
  card.image.consistency = consistency;
  card.facts.splice(1, 0, `consistency with the cloud ${number(consistency.mean, 2)}`);
  find(".facts", card.element).replaceChildren(...card.facts.map((fact) => make("li", {}, fact)));
  total();
}

/** The image in full size, beside what was sent. */
function enlarge(delivery) {
  const { image, title, facts: said, reference } = cards.get(delivery);
  open(`${TITLES[delivery]}: ${title}`,
    { src: png(reference), alt: `sent: ${title}`, tag: delivery === "equal" ? "to be sent" : "sent", kind: delivery },
    { src: png(image.b64_json), alt: `received: ${title}`, tag: "received", kind: delivery },
    [`${number(uses(image.link_report))} channel uses`, ...said].join(" · "));
}

function facts({ consistency, link_report: report }, psnr_db, also) {
  const knowledge = report.knowledge.map((each) => `${each.topic} v${each.version}`).join(", ");
  return [
    psnrSaid(report, psnr_db),
    consistency ? `consistency with the cloud ${number(consistency.mean, 2)}` : "",
    report.instantaneous_snr_db === null ? "" : `SNR with fading ${number(report.instantaneous_snr_db, 1)} dB`,
    report.expected_psnr_db === null ? "" : `expected ${number(report.expected_psnr_db, 1)} dB`,
    ...(also ?? (report.picture ? described(report.picture) : [])),
    report.coding ? `${number(report.coding.payload_bytes)} B of ${report.image_format}` : "",
    knowledge ? `generated with ${knowledge}` : "",
    ...Object.entries(report.prompt_read)
      .filter(([, read]) => read.tokens > read.tokens_at_once)
      .map(([side, read]) => `the ${side} read ${read.tokens} tokens, ${read.tokens_at_once} at a time`),
    report.cached ? "from the cache" : "",
  ].filter(Boolean);
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
  const most = Math.max(...stages.map((stage) => stage.seconds)) || 1;
  return stages.flatMap((stage) => {
    const length = make("span", { class: "length" });
    length.style.width = `${(100 * stage.seconds) / most}%`;
    return [make("span", {}, stage.stage), length, make("span", {}, `${number(1000 * stage.seconds)} ms`)];
  });
}

function total() {
  const rows = [...cards].filter(([, { image }]) => image);
  find("#comparison").hidden = rows.length === 0;
  find("#costs").replaceChildren(
    ...rows.map(([delivery, { image: { consistency, link_report: report }, psnr_db }]) =>
      row(TITLES[delivery], number(uses(report)), number(consistency?.mean, 2),
        psnrSaid(report, psnr_db).replace("PSNR ", ""), number(delivery === "equal" ? report.coding.payload_bytes : hop(report, "cloud-edge")), number(seconds(report), 2))));
  const [ours, theirs] = ["semantic", "conventional"].map((delivery) => cards.get(delivery));
  if (!ours?.image || !theirs?.image) {
    find("#saving").textContent = cards.size === Object.keys(TITLES).length ? INTRODUCTION : "";
    return;
  }
  const times = number(uses(theirs.image.link_report) / uses(ours.image.link_report), 1);
  const said = !theirs.image.link_report.decoded
    ? "its decoding failed"
    : theirs.psnr_db === null || ours.psnr_db === null
    ? "their PSNR was not measured"
    : `its PSNR is ${number(theirs.psnr_db, 1)} dB instead of ${number(ours.psnr_db, 1)} dB`;
  find("#saving").textContent =
    `The whole ${theirs.image.link_report.image_format} file takes ${times} times the channel uses of the latent; ${said}. ` +
    "The file of equal cost is the same image with fewer pixels, as many as fit; a sender that lowers the quality too can do better.";
}
