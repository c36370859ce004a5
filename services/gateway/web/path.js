// The way from the cloud to the device: what each hop carried, and how long each service took.

import { psnrSaid } from "./cards.js";
import { constellation } from "./charts.js";
import { exact, find, make, number, png } from "./dom.js";

const STEPS = ["cloud", "cloud-edge", "edge", "edge-channel", "channel", "channel-user", "user"];
const STEP_MS = 260; // of each hop on the screen: most are too fast to see
const list = find("#path");
const part = (name) => find(`[data-node="${name}"], [data-hop="${name}"]`, list);
const still = matchMedia("(prefers-reduced-motion: reduce)");
const radios = () => [...document.querySelectorAll("#ways input")];
let state = null;
let timers = [];

const spent = (report, service) =>
  report.stages.filter(({ stage }) => stage.startsWith(`${service}.`) && stage !== "user.measure");
const milliseconds = (s) => (s < 1 ? `${number(1000 * s, s < 0.01 ? 1 : 0)} ms` : `${number(s, 2)} s`);
const sum = (stages) => stages.reduce((total, { seconds }) => total + seconds, 0);
const took = (report, service) => {
  const stages = spent(report, service);
  return stages.length ? milliseconds(sum(stages)) : "";
};

function screen(name, content, label) {
  const box = find(".screen", part(name));
  if (content === null) box.replaceChildren();
  else if (typeof content === "string") box.replaceChildren(make("img", { src: content, alt: label, width: 256, height: 256 }));
  else box.replaceChildren(content);
  box.classList.toggle("empty", content === null);
}

function say(name, ...lines) {
  find("p", part(name)).replaceChildren(...lines.filter(Boolean).map((line) => make("span", {}, line)));
}

const strong = (text) => make("b", {}, text);

/** What each step shows of one delivered image. */
function facts(image, { own, known, images, title }) {
  const report = image.link_report;
  const file = report.source === "cloud";
  const backhaul = report.hops.find(({ hop }) => hop === "cloud-edge")?.sent_bytes ?? 0;
  const updates = report.knowledge.map(({ topic }) => topic);
  const once = known.filter(({ topic }) => updates.includes(topic)).reduce((total, each) => total + each.size_bytes, 0);
  const uses = report.channel_uses + report.pilot_uses;
  const air = report.latency ? `${milliseconds(report.latency.air_s)} on the air` : "";
  const cloud = png(images.conventional?.details?.reference_b64_json);
  const quality = psnrSaid(report);
  return {
    cloud: () => {
      screen("cloud", own || !(file || updates.length) ? null : cloud, `the cloud's image: ${title}`);
      say("cloud", file ? "draws the image" : updates.length ? "taught the edge" : "sends nothing", file ? took(report, "cloud") || "from its cache" : "");
    },
    "cloud-edge": () =>
      once
        ? say("cloud-edge", strong(`${number(once)} B`), `update of ${updates.join(" and ")}, once`, `${number(backhaul)} B for this image`)
        : say("cloud-edge", strong(`${number(backhaul)} B`), file ? `${report.image_format ?? "image"} file` : "no update"),
    edge: () => {
      screen("edge", png(image.details?.reference_b64_json), `sent: ${title}`);
      const work = file ? "codes the file for the channel" : own ? "codes your picture" : "draws and codes a latent";
      say("edge", work, [took(report, "edge"), report.cached ? "from the cache" : ""].filter(Boolean).join(", "));
    },
    "edge-channel": () => say("edge-channel", strong(number(uses)), "symbols", air),
    channel: () => {
      const points = image.details?.constellation.received;
      screen("channel", points ? constellation(points, "as received") : null);
      const now = report.instantaneous_snr_db;
      say("channel", `${exact(report.snr_db)} dB, ${report.fading}`, now === null ? "" : `now ${number(now, 1)} dB`);
    },
    "channel-user": () => say("channel-user", strong(number(uses)), "faded, with noise"),
    user: () => {
      screen("user", png(image.b64_json), `received: ${title}`);
      say("user", strong(quality), `decoded in ${took(report, "user")}`);
    },
  };
}

function clear(name) {
  part(name).classList.remove("done", "active");
  find("p", part(name)).replaceChildren();
  if (part(name).dataset.node) screen(name, null);
}

function stop() {
  for (const timer of timers) clearTimeout(timer);
  timers = [];
}

/** The request has left; previews and the image follow. */
export function wait(next) {
  state = next;
  stop();
  STEPS.forEach(clear);
  part("edge").classList.add("active");
  say("edge", "waiting for the request");
  find("#clock").textContent = "";
}

/** The edge has denoised some steps: shows its preview, if the aligned delivery is on display. */
export function preview({ step, steps, b64_json: base64 }) {
  if (chosen() !== "semantic" || state?.images.semantic) return;
  screen("edge", png(base64), `preview after step ${step}`);
  say("edge", `step ${step} of ${steps}`);
}

const chosen = () => radios().find((radio) => radio.checked).value;

/** An image has arrived. The one on display runs through the steps. */
export function show(next, delivery = chosen()) {
  state = next;
  for (const radio of radios()) radio.disabled = !next.deliveries.includes(radio.value);
  if (radios().find((radio) => radio.checked).disabled) {
    const usable = radios().find((radio) => !radio.disabled);
    if (usable) usable.checked = true;
  }
  const image = next.images[chosen()];
  if (!image) return;
  if (delivery !== chosen()) { // the cloud's image may have come
    if (part("cloud").classList.contains("done")) facts(image, next).cloud();
    return;
  }
  stop();
  list.dataset.kind = chosen();
  const steps = facts(image, next);
  const finish = (name) => {
    steps[name]();
    part(name).classList.remove("active");
    part(name).classList.add("done");
  };
  const { latency } = image.link_report;
  const clock = latency
    ? `${number(latency.compute_s + latency.air_s + latency.backhaul_s, 2)} s from request to image: ` +
      `${number(latency.compute_s, 2)} s of computing (measured), ${milliseconds(latency.air_s)} on the air and ` +
      `${milliseconds(latency.backhaul_s)} between cloud and edge (modelled).`
    : "";
  if (still.matches) {
    STEPS.forEach(finish);
    find("#clock").textContent = clock;
    return;
  }
  STEPS.forEach(clear);
  STEPS.forEach((name, i) => {
    timers.push(setTimeout(() => part(name).classList.add("active"), i * STEP_MS));
    timers.push(setTimeout(() => finish(name), (i + 1) * STEP_MS));
  });
  timers.push(setTimeout(() => (find("#clock").textContent = clock), STEPS.length * STEP_MS));
}

export function start() {
  find("#ways").addEventListener("change", () => state && show(state));
}
