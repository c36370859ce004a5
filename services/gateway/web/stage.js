// The large comparison of two images, and what it shows in a sentence.

import { compare, connect } from "./compare.js";
import { open as enlargePair } from "./full.js";
import { exact, find, make, number, png } from "./dom.js";
import { topicsOf } from "./words.js";

const hero = find("#hero");
const verdict = find("#verdict");
let last = null;

const topics = (image) => (image?.link_report.knowledge ?? []).map(({ topic }) => topic);
const quoted = (names) => names.map((name) => `“${name}”`).join(" and ");

function cost(image) {
  if (!image) return "";
  const { channel_uses: uses, pilot_uses: pilots, image_format: format } = image.link_report;
  return `${number(uses + pilots)} symbols${format ? `, as a ${format} file` : ""}`;
}

/** The two images of each choice, each with what explains it; with `steps`, alignment has the one between them, too. */
function choices({ title, own, images, equal }, steps) {
  const { semantic, "semantic-unaligned": unaligned, untaught, conventional } = images;
  const received = (image, tag, kind, why) => ({ src: png(image?.b64_json), alt: `received: ${title}`, tag, kind, why });
  const sent = (image, tag, kind, why) =>
    ({ src: png(image?.details?.reference_b64_json), alt: `sent: ${title}`, tag, kind, why });
  const taught = own ? [] : topics(semantic);
  const unknown = own ? [] : topicsOf(title);
  const { snr_db, fading } = semantic?.link_report ?? {};
  // without an update, only the transmission is aligned; the drawing of a word that needs one stays another
  const alone = semantic && !taught.length;
  const aligned = (why) =>
    received(semantic, alone ? "+ transmission alignment" : "with alignment", alone ? "untaught" : "semantic", why);
  const lacking = unknown.length ? ` Without an update of ${quoted(unknown)}, the edge draws something else.` : "";
  const neither = received(unaligned, "without alignment", "semantic-unaligned", unknown.length
    ? `The edge was never taught ${quoted(unknown)}, and its code is not fitted to the channel.`
    : "The code is not fitted to the channel.");
  const between = received(untaught, "+ transmission alignment", "untaught",
    "The same drawing. Only the code differs: it is fitted to the channel.");
  const both = received(semantic, "+ knowledge alignment", "semantic",
    `The same code. Only the drawing differs: the edge was taught ${quoted(taught)}.`);
  return {
    alignment: steps ? [neither, between, both] : [
      neither,
      aligned(taught.length ? `Taught ${quoted(taught)}, and fitted to the channel.` : `Only the code differs: it is fitted to the channel.${lacking}`),
    ],
    transmission: [neither, between],
    knowledge: [between, both],
    channel: [
      sent(semantic, own ? "your picture" : "as the edge sent it", "semantic", "before the channel"),
      received(semantic, "as it arrived", "semantic", semantic ? `after ${fading} at ${exact(snr_db)} dB` : ""),
    ],
    file: [
      received(equal?.image, "file of equal cost", "equal", equal?.width ? `${cost(equal.image)}, ${equal.width}×${equal.height}` : cost(equal?.image)),
      aligned(cost(semantic)),
    ],
    cloud: [
      sent(conventional, own ? "your picture" : "the cloud's image", "conventional", `it would take ${cost(conventional)}`),
      aligned(cost(semantic)),
    ],
  };
}

/** Shows the images that are there. Once all are, a choice without its two images cannot be chosen. */
export function show(state) {
  last = state;
  const steps = hero.classList.contains("split") && (state.steps ?? (state.busy && hero.classList.contains("three")));
  const offered = choices(state, steps);
  const radios = [...document.querySelectorAll("#pairs input")];
  const lacks = (choice) => // the choices of one alignment need the image between both; others may show that one was lost
    ["transmission", "knowledge"].includes(choice) ? !state.images.untaught
      : !offered[choice].some((image) => image.src) || (choice === "file" && state.equal === "not searched");
  for (const radio of radios) radio.disabled = !state.busy && lacks(radio.value);
  const chosen = radios.find((radio) => radio.checked);
  const shown = chosen.disabled ? radios.find((radio) => !radio.disabled) : chosen;
  if (!shown) return;
  shown.checked = true;
  find("#subject").replaceChildren(...(state.own ? [`Picture: ${state.title}`] : ["Prompt: ", make("q", {}, state.title)]));
  compare(hero, offered[shown.value], state.busy);
  find("#readout").replaceChildren(...readout(state));
  verdict.replaceChildren(...said(state));
}

/** What the images cost and how good they are: without alignment, with the first, with both; each in its colour. */
function readout({ images, steps }) {
  const kinds = ["semantic-unaligned", ...(steps ? ["untaught"] : []), "semantic"];
  const each = (of, digits) => {
    const values = kinds.map((kind) => images[kind] && of(images[kind]));
    if (values.every((value) => value === undefined || value === null)) return ["–"];
    return kinds.flatMap((kind, i) => [
      ...(i ? [" → "] : []),
      make("span", { "data-kind": kind }, values[i] === undefined ? "…" : number(values[i], digits)),
    ]);
  };
  const report = (images.semantic ?? images["semantic-unaligned"])?.link_report;
  return [
    ["symbols for each image", report ? [number(report.channel_uses + report.pilot_uses)] : ["…"]],
    ["PSNR against the image that was sent, dB", each((image) => image.link_report.psnr_db, 1)],
    ["consistency with the cloud's image (1: same)", each((image) => image.consistency?.mean, 2)],
  ].map(([label, values]) => make("div", {}, make("dt", {}, label), make("dd", {}, ...values)));
}

/** The shown pair in full size. */
function enlarge() {
  if (!last) return;
  const pair = choices(last, false)[document.querySelector("#pairs input:checked").value];
  if (pair.every((image) => image.src)) enlargePair(last.title, ...pair);
}

function said({ title, own, images: { semantic, "semantic-unaligned": unaligned }, known, busy }) {
  if (busy) return [`“${title}” is on its way.`];
  if (!semantic || !unaligned) return [`“${title}”`];
  if (own) return [`“${title}”: transmission alignment, the adapters of the codec, makes the difference.`];
  const updates = topics(semantic).map((topic) => {
    const bytes = known.find((each) => each.topic === topic)?.size_bytes;
    return bytes ? `${topic} (${number(bytes)} bytes, once)` : topic;
  });
  const missing = topicsOf(title).filter((topic) => !topics(semantic).includes(topic));
  const parts = [`“${title}”. `];
  if (updates.length) parts.push(`Knowledge alignment is an update of ${updates.join(" and ")}; without it, the edge does not know the word. `);
  if (missing.length)
    parts.push(`The edge has no update of ${missing.join(" and ")} and draws something else. `, teachLink(missing[0]), ". ");
  if (!updates.length && !missing.length) parts.push("The edge knew these words already: knowledge alignment changes nothing here. ");
  parts.push("Transmission alignment is a set of adapters of the codec, for any prompt.");
  return parts;
}

/** The link to the form that teaches, with this topic in it. */
function teachLink(topic) {
  const link = make("a", { href: "#teach" }, "Teach it");
  link.addEventListener("click", () => (find("#topic").value = topic));
  return link;
}

export function start() {
  for (const element of document.querySelectorAll(".compare")) connect(element);
  find("#pairs").addEventListener("change", () => last && show(last));
  find("#layouts").addEventListener("change", (event) => {
    const split = event.target.value === "split";
    hero.classList.toggle("split", split);
    find("input", hero).disabled = split;
    if (last) show(last);
  });
  find(".enlarge", hero).addEventListener("click", enlarge);
  for (const img of hero.querySelectorAll("img")) img.addEventListener("click", enlarge);
}
