// The form that requests an image, or sends a picture: one request for each delivery, the same image over the same
// channel.

import { askJson, Problem } from "./api.js";
import { fill, lay } from "./cards.js";
import { clearProblems, find, showProblem } from "./dom.js";

const RATES = [1 / 768, 1 / 384, 1 / 192, 1 / 96, "auto"];
const form = find("#ask-form");
const status = find("#ask-status");
// Changes are sent with a delay: a vanishing problem moves the page, so that the click that ended the change would miss.
const SOON_MS = 300;
let soon;
let side = 0; // of the profile's images, pixels; 0: not known yet
let asking = new AbortController();

const IDS = { "link.cbr": "rate" };
const idOf = (field) => IDS[field] ?? field.replace(/^link\./, "");

/** The request for one delivery of a generated image, or of a picture in base64; only fields that apply to it. */
function request(data, delivery, picture) {
  const semantic = delivery !== "conventional";
  const rate = RATES[data.get("rate")];
  const link = { snr_db: Number(data.get("snr_db")), csi: data.get("csi"), fading: data.get("fading") };
  const body = { delivery, details: true, link };
  if (!picture) Object.assign(body, { prompt: data.get("prompt"), consistency: true });
  else Object.assign(body, { picture, prompt: data.get("prompt").trim() || null });
  const of = (name) => numeric(data.get(name), name === "seed" ? name : `link.${name}`);
  body.seed = of("seed");
  link.tau_rms_s = of("tau_rms_s");
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
    if (!picture) body.knowledge = data.get("knowledge");
    link.restoration = data.get("restoration");
  }
  return body;
}

/** A file in base64. */
async function base64(file) {
  const reader = new FileReader();
  await new Promise((resolve, reject) => {
    reader.onload = resolve;
    reader.onerror = () => reject(new Problem(0, "", [{ field: "picture", detail: "This file cannot be read." }]));
    reader.readAsDataURL(file);
  });
  return reader.result.slice(reader.result.indexOf(",") + 1);
}

/** Shows whether there is a picture: the prompt of an example then does not describe what is sent. */
function pictureChanged() {
  const { prompt, picture } = form;
  const [file] = picture.files;
  find("#no-picture").hidden = !file;
  if (file && prompt.value === prompt.defaultValue) prompt.value = "";
  if (!file && prompt.value === "") prompt.value = prompt.defaultValue;
}

/** A number; anything else is sent unchanged, so that the gateway reports the allowed values. */
const numeric = (text) => (text.trim() !== "" && Number.isFinite(Number(text)) ? Number(text) : text);

async function send() {
  clearTimeout(soon);
  asking.abort();
  const mine = (asking = new AbortController());
  const data = new FormData(form);
  const deliveries = data.getAll("delivery");
  clearProblems(form, status);
  if (!deliveries.length) {
    status.textContent = "Choose at least one delivery.";
    return;
  }
  lay(deliveries);
  const [file] = form.picture.files;
  status.textContent = file ? "Sending…" : "Generating and sending…";
  const start = performance.now();
  const picture = file && base64(file);
  const problems = await Promise.all(
    deliveries.map(async (delivery) => {
      const shown = file ? file.name : data.get("prompt");
      try {
        const body = request(data, delivery, await picture);
        const path = file ? "v1/pictures" : "v1/images/generations";
        const answer = await askJson("POST", path, body, mine.signal);
        fill(delivery, shown, answer.data[0]);
        return null;
      } catch (error) {
        if (mine === asking) fill(delivery, shown, null);
        return error;
      }
    }),
  );
  if (mine !== asking) return; // replaced by another request
  const problem = problems.find(Boolean);
  if (!problem) status.textContent = `Done in ${((performance.now() - start) / 1000).toFixed(1)} s.`;
  else {
    if (problem.status === 401) find("#key-form").hidden = false;
    showProblem(problem, form, status, idOf);
  }
}

function showValues() {
  find("#snr_db-shown").textContent = `${form.snr_db.value} dB`;
  const rate = RATES[form.rate.value];
  const said = rate === "auto" ? "auto: smallest for the target" : `1/${Math.round(1 / rate)}${symbols(rate)}`;
  find("#rate-shown").textContent = said;
  form.rate.setAttribute("aria-valuetext", said);
  form.snr_db.setAttribute("aria-valuetext", `${form.snr_db.value} dB`);
}

/** How many symbols an image of the profile's size takes at a rate, once that size is known. */
const symbols = (rate) => (side ? `: ${Math.round(3 * side * side * rate).toLocaleString("en")} symbols` : "");

/** Notes the side of the profile's images, pixels. */
export function setSize(pixels) {
  side = pixels;
  showValues();
}

/** Adds the topics of the edge to the selection. */
export function offerTopics(topics) {
  const { knowledge } = form;
  const chosen = knowledge.value;
  for (const option of [...knowledge.options].slice(2)) option.remove();
  for (const topic of topics) knowledge.add(new Option(topic, topic));
  knowledge.value = [...knowledge.options].some((option) => option.value === chosen) ? chosen : "auto";
}

export function start() {
  showValues();
  form.addEventListener("input", showValues);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    send();
  });
  form.addEventListener("change", (event) => {
    const sent = find("#cards").childElementCount > 0;
    if (sent && find("#again").checked && event.target.id !== "again") {
      clearTimeout(soon);
      soon = setTimeout(send, SOON_MS);
    }
  });
  form.picture.addEventListener("change", pictureChanged);
  find("#no-picture").addEventListener("click", () => {
    form.picture.value = "";
    form.picture.dispatchEvent(new Event("change", { bubbles: true }));
  });
  const drop = find("#drop");
  for (const kind of ["dragover", "dragleave", "drop"])
    drop.addEventListener(kind, (event) => {
      event.preventDefault();
      drop.classList.toggle("over", kind === "dragover");
      if (kind !== "drop" || !event.dataTransfer.files.length) return;
      if (event.dataTransfer.files.length > 1) {
        status.textContent = "One picture at a time: nothing was taken.";
        return;
      }
      form.picture.files = event.dataTransfer.files;
      form.picture.dispatchEvent(new Event("change", { bubbles: true }));
    });
  find("#new-seed").addEventListener("click", () => {
    form.seed.value = Math.floor(Math.random() * 2 ** 31);
    send();
  });
}
