// The form that requests an image, or sends a picture: one request for each delivery, the same image over the same
// channel; then the file of equal cost, and the curve of quality against SNR.

import { askJson, hasKey, Problem, stream } from "./api.js";
import { addConsistency, explain, fill, lay, offer } from "./cards.js";
import * as curve from "./curve.js";
import { clearProblems, find, number, png, showProblem } from "./dom.js";
import { fit } from "./equal.js";
import * as examples from "./examples.js";
import * as gallery from "./gallery.js";
import { defaultOf, lacking, linkOf, readLink, setRequest } from "./link.js";
import { compared } from "./origin.js";
import * as path from "./path.js";
import * as picture from "./picture.js";
import * as stage from "./stage.js";

const RATES = [1 / 768, 1 / 384, 1 / 192, 1 / 96, "auto"];
const ASKED_HERE = ["delivery", "measure", "details", "stream", "partial_images", "n", "output_format", "response_format"];
const SEARCH_COSTS = "Finding it takes four or five conventional deliveries; each counts as several requests of your key.";
const ALIGNED_ONLY = ["adapter_scale", "knowledge"];
const form = find("#ask-form");
const status = find("#ask-status");
// Changes are sent with a delay: a vanishing problem moves the page, so that the click that ended the change would miss.
const SOON_MS = 300;
let soon;
let side = 0; // of the profile's images, pixels; 0: not known yet
let asking = new AbortController();
let known = []; // knowledge updates of the edge

const IDS = { "link.cbr": "rate" };
const idOf = (field) => IDS[field] ?? field.replace(/^link\./, "");

/** The request for one delivery of a generated image, or of a picture in base64; only fields that apply to it. */
function request(data, delivery, own) {
  const semantic = delivery !== "conventional";
  const rate = RATES[data.get("rate")];
  const link = { snr_db: Number(data.get("snr_db")), csi: data.get("csi"), fading: data.get("fading") };
  const body = { delivery, details: true, link };
  if (!own) body.prompt = data.get("prompt");
  else Object.assign(body, { picture: own, prompt: data.get("prompt").trim() || null });
  const of = (name) => numeric(data.get(name));
  body.seed = unrounded(of("seed"), "seed");
  if (!["awgn", "trace", "rayleigh-magnitude"].includes(link.fading)) link.tau_rms_s = of("tau_rms_s");
  if (link.fading.startsWith("tdl")) link.speed_m_s = of("speed_m_s");
  if (link.fading === "trace") link.trace = data.get("trace");
  if (semantic) {
    link.modulation = data.get("modulation");
    link.side_information = data.get("side_information");
    link.equalizer = data.get("equalizer");
    const chosen = rate === "auto" && delivery === "semantic"; // there is no quality model for the unaligned codec
    link.cbr = chosen ? "auto" : rate === "auto" ? 1 / 96 : rate;
    if (chosen) link.target_psnr_db = of("target_psnr_db");
  } else body.image_format = data.get("image_format");
  if (delivery === "semantic") {
    if (!own) body.knowledge = data.get("knowledge");
    link.restoration = data.get("restoration");
  }
  return withMore(body, data.get("more"), own);
}

/** A number; anything else is sent unchanged, so that the gateway reports the allowed values. */
const numeric = (text) => (text.trim() !== "" && Number.isFinite(Number(text)) ? Number(text) : text);

/** A whole number, unless it is so large that it would be rounded here. */
function unrounded(value, field) {
  if (!Number.isInteger(value) || Number.isSafeInteger(value)) return value;
  const detail = `${field} must be at most ${Number.MAX_SAFE_INTEGER} here; the REST interface and dekag image take more.`;
  throw new Problem(0, detail, [{ field, detail }]);
}

/** What the field for the prompt makes of a text. */
const inOneLine = (text) => String(text ?? "").replaceAll(/[\r\n]/g, "");

/**
 * Settings that the form has no control for, as they were written into a file: {link, ...}. With them is a prompt with
 * line breaks, which its field drops, as long as the field has the rest of it.
 */
function moreOf(text) {
  try {
    const { link, ...rest } = JSON.parse(text || "{}");
    for (const name of ASKED_HERE) delete rest[name]; // a link may have any
    if (inOneLine(rest.prompt) !== form.prompt.value) delete rest.prompt;
    return { ...rest, link: link ?? {} };
  } catch {
    return { link: {} }; // of a link that was cut off
  }
}

/** `body` with the settings that the form has no control for; a picture of one's own has only those of its link. */
function withMore(body, more, own) {
  const { link, ...rest } = moreOf(more);
  if (body.delivery !== "semantic") {
    for (const name of ALIGNED_ONLY) delete rest[name];
    delete link.restoration;
  }
  return { ...body, ...(own ? {} : rest), link: { ...body.link, ...link } };
}

/** Sends what the form says; `again` is a file {file, origin} that is made again. */
async function send(again = null) {
  clearTimeout(soon);
  asking.abort();
  const mine = (asking = new AbortController());
  const data = new FormData(form);
  const deliveries = data.getAll("delivery");
  clearProblems(form, status);
  find("#origin").hidden = !again;
  showMore();
  if (!deliveries.length) {
    status.textContent = "Choose at least one delivery.";
    return;
  }
  const [file] = form.picture.files;
  const own = Boolean(file);
  const both = deliveries.includes("conventional") && deliveries.some((each) => each !== "conventional");
  lay(both ? [...deliveries.filter((each) => each !== "conventional"), "equal", "conventional"] : deliveries);
  status.textContent = own ? "Sending…" : "Generating and sending…";
  const start = performance.now();
  const state = { title: own ? file.name : data.get("prompt"), own, deliveries, known, images: {}, equal: hasKey() ? "not searched" : null, steps: null, busy: true };
  path.wait(state);
  stage.show(state);
  const sent = own ? await picture.base64(file).catch((error) => error) : null;
  const one = (delivery) => deliver(delivery, state, data, sent, mine);
  const problems = [];
  for (const together of [["semantic"], ["semantic-unaligned", "conventional"]]) { // so that the first is there soon
    problems.push(...(await Promise.all(together.filter((each) => deliveries.includes(each)).map(one))));
    if (problems.some(Boolean)) break;
  }
  if (state.steps && !problems.some(Boolean)) await deliverUntaught(state, data, mine);
  if (mine !== asking) return; // replaced by another request
  state.busy = false;
  const problem = problems.find(Boolean);
  if (problem) {
    for (const delivery of [...deliveries, "equal"]) if (!state.images[delivery]) fill(delivery, state.title, null);
    if (problem.status === 401) find("#key-form").hidden = false;
    return showProblem(problem, form, status, idOf);
  }
  status.textContent = `Done in ${((performance.now() - start) / 1000).toFixed(1)} s.`;
  stage.show(state);
  keep(state, data);
  const made = again && state.images[again.origin.request.delivery ?? "semantic"];
  if (made) {
    const said = await compared(again.origin, again.file, made).catch(() => "This browser cannot compare it with the file.");
    if (mine === asking) picture.say(said);
  }
  try {
    const search = () => deliverEqual(state, data, mine).catch((error) => {
      if (mine === asking) explain("equal", error.message);
    });
    if (both && hasKey()) offer("equal", SEARCH_COSTS, "Search for it", search);
    else if (both) await search();
    mine.signal.throwIfAborted();
    await curve.measureAll({
      deliveries, own, signal: mine.signal, now: Number(data.get("snr_db")),
      path: pathOf(own),
      bodyOf: (delivery, snr_db) => {
        const body = request(data, delivery, sent);
        return { ...body, details: false, link: { ...body.link, snr_db }, ...(own ? {} : { consistency: true }) };
      },
      onFirst: (delivery, { consistency }) => {
        addConsistency(delivery, consistency);
        stage.show(state);
      },
    });
  } catch (error) {
    if (mine === asking) curve.fail(error);
  }
}

const pathOf = (own) => (own ? "v1/pictures" : "v1/images/generations");

/** Sends one delivery and shows it; returns the error, if any. */
async function deliver(delivery, state, data, sent, mine) {
  try {
    if (sent instanceof Error) throw sent;
    const body = request(data, delivery, sent);
    const image = delivery === "semantic" && !state.own
      ? await stream(pathOf(false), body, mine.signal, (event) => mine === asking && path.preview(event))
      : (await askJson("POST", pathOf(state.own), body, mine.signal)).data[0];
    if (mine !== asking) return null;
    state.images[delivery] = image;
    if (delivery === "semantic")
      state.steps = state.deliveries.includes("semantic-unaligned") && image.link_report.knowledge.length > 0;
    fill(delivery, state.title, image);
    path.show(state, delivery);
    stage.show(state);
    return null;
  } catch (error) {
    return error;
  }
}

/**
 * Sends the aligned delivery without knowledge: it differs from each of the others by one of the two alignments. Without it,
 * for whatever reason, the others are shown as a pair.
 */
async function deliverUntaught(state, data, mine) {
  const body = { ...request(data, "semantic", null), knowledge: "none", consistency: true };
  delete body.adapter_scale;
  body.link.restoration = "none"; // which an image drawn with an update never gets
  if (body.link.cbr === "auto") { // as many symbols as with knowledge
    const { cbr, channel_uses: uses, pilot_uses: pilots } = state.images.semantic.link_report;
    body.link.cbr = (cbr * uses) / (uses + pilots);
    delete body.link.target_psnr_db;
  }
  try {
    const image = (await askJson("POST", pathOf(false), body, mine.signal)).data[0];
    if (mine === asking) state.images.untaught = image;
  } catch {
    state.steps = false;
  }
}

/** Sends the cloud's image, or the picture, as a file of no more channel uses than the latent. */
async function deliverEqual(state, data, mine) {
  const { conventional } = state.images;
  const { channel_uses: uses, pilot_uses: pilots } = (state.images.semantic ?? state.images["semantic-unaligned"]).link_report;
  const whole = conventional.link_report;
  if (whole.channel_uses + whole.pilot_uses <= uses + pilots) {
    state.equal = { image: conventional };
    fill("equal", state.title, conventional, { also: ["the whole file takes no more"] });
  } else {
    const reference = conventional.details.reference_b64_json;
    const found = await fit(reference, uses + pilots, async (small) => {
      const body = { ...request(data, "conventional", small), prompt: null, details: false };
      return (await askJson("POST", "v1/pictures", body, mine.signal)).data[0];
    });
    mine.signal.throwIfAborted();
    if (!found) return explain("equal", `no file fits into ${number(uses + pilots)} channel uses here`);
    state.equal = found;
    fill("equal", state.title, found.image,
      { also: [`reduced to ${found.width}×${found.height} pixels`], psnr: found.psnr_db, reference });
  }
  stage.show(state);
}

/** Adds what arrived to the gallery, with the link that asks for it again; the page has that link from now on. */
function keep({ title, own, images }, data) {
  const image = images.semantic ?? Object.values(images)[0];
  const href = own ? null : linkOf(form);
  if (href) history.replaceState(null, "", href);
  const { psnr_db } = image.link_report;
  const said = `${data.get("snr_db")} dB ${data.get("fading")}, seed ${image.seed}` +
    (psnr_db === null ? "" : `, PSNR ${number(psnr_db, 1)} dB`);
  if (image.b64_json) gallery.add({ title, said, href, src: png(image.b64_json) }).catch(() => {});
}

/** Shows the settings that the form has no control for. */
function showMore() {
  const { link, ...rest } = moreOf(form.more.value);
  const settings = [...Object.entries(rest), ...Object.entries(link)].map(([name, value]) =>
    name === "prompt" ? "line breaks of the prompt" : `${name} ${[value].flat().join(", ")}`);
  find("#more").hidden = !settings.length;
  find("#more-said").textContent = `Also: ${settings.join("; ")}.`;
}

/** Asks for the image of a file again. */
async function sendAgain(file, origin) {
  try {
    setRequest(form, origin.request, RATES);
    const { components: { schemas } } = await askJson("GET", "openapi.json");
    const body = request(new FormData(form), origin.request.delivery ?? "semantic", null);
    const more = lacking(origin.request, body, schemas);
    if (more.size === `${side}x${side}`) delete more.size;
    form.more.value = Object.keys(more).length ? JSON.stringify(more) : "";
  } catch (error) {
    return showProblem(error, form, status, idOf);
  }
  form.prompt.dispatchEvent(new Event("input", { bubbles: true }));
  await send({ file, origin });
}

function showValues() {
  find("#snr_db-shown").textContent = `${form.snr_db.value} dB`;
  const rate = RATES[form.rate.value];
  const said = rate === "auto" ? "auto: smallest for the target" : `1/${Math.round(1 / rate)}${symbols(rate)}`;
  find("#rate-shown").textContent = said;
  form.rate.setAttribute("aria-valuetext", said);
  curve.mark(Number(form.snr_db.value));
  form.snr_db.setAttribute("aria-valuetext", `${form.snr_db.value} dB`);
  find("#link .now").textContent = [form.fading.value, said.split(":")[0], form.knowledge.value].join(", ");
  find("#settings .now").textContent = changes(find("#settings")).join(", ");
}

/** What within an element was changed from how the page opens. */
function changes(element) {
  const named = [...element.querySelectorAll("[name]")];
  const boxes = named.filter(({ type }) => type === "checkbox");
  const chosen = boxes.filter(({ checked }) => checked).map(({ value }) => value);
  return [
    ...(chosen.length < boxes.length ? [chosen.join(" and ") || "no delivery"] : []),
    ...named.filter((control) => !boxes.includes(control) && control.value !== defaultOf(control))
      .map(({ name, value }) => `${name} ${value}`),
  ];
}

/** How many symbols an image of the profile's size takes at a rate, once that size is known. */
const symbols = (rate) => (side ? `: ${Math.round(3 * side * side * rate).toLocaleString("en")} symbols` : "");

/** Notes the side of the profile's images, pixels. */
export function setSize(pixels) {
  side = pixels;
  showValues();
}

/** Notes the knowledge updates of the edge, and adds their topics to the selection. */
export function setKnown(updates) {
  known = updates;
  const topics = updates.map((each) => each.topic);
  examples.setTaught(topics);
  const { knowledge } = form;
  const chosen = knowledge.value;
  for (const option of [...knowledge.options].slice(2)) option.remove();
  for (const topic of topics) knowledge.add(new Option(topic, topic));
  knowledge.value = [...knowledge.options].some((option) => option.value === chosen) ? chosen : "auto";
  showValues();
}

export function start() {
  examples.start(() => {
    picture.remove();
    form.more.value = "";
    send();
  });
  curve.start((snr_db) => {
    form.snr_db.value = snr_db;
    showValues();
    send();
  });
  form.addEventListener("input", showValues);
  addEventListener("hashchange", () => openLink() && send());
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    send();
  });
  form.addEventListener("change", (event) => {
    if (event.target.id === "prompt" && !form.prompt.value.trim()) return; // about to be typed
    if (find("#again").checked && event.target.id !== "again") {
      clearTimeout(soon);
      soon = setTimeout(send, SOON_MS);
    }
  });
  picture.start({
    onPicture: (now = find("#again").checked) => {
      form.more.value = "";
      if (now) send();
    },
    onAgain: sendAgain,
    onRefused: (text) => (status.textContent = text),
  });
  find("#no-more").addEventListener("click", () => {
    form.more.value = "";
    send();
  });
  find("#new-seed").addEventListener("click", () => {
    form.seed.value = Math.floor(Math.random() * 2 ** 31);
    showValues();
    send();
  });
}

/** Sets the form as the page's link says; whether it is the link of a request. */
function openLink() {
  if (!readLink(form, location.hash)) return false;
  picture.remove();
  form.prompt.dispatchEvent(new Event("input", { bubbles: true }));
  return true;
}

/** Delivers the first image: that of the page's link, or the example. */
export function open() {
  openLink();
  showValues();
  return send();
}
