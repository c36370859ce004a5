// Distillation: start it, follow it, show samples; and the table of the edge's topics.

import { ask, askJson, follow, pictureUrl, Problem } from "./api.js";
import { setKnown, setSize } from "./ask.js";
import { clearProblems, find, make, number, row, showProblem } from "./dom.js";
import { offer } from "./examples.js";

const form = find("#teach-form");
const status = find("#teach-status");
const STAGES = { generate: "the cloud generates images", train: "the edge is trained", score: "samples are generated" };
const LIVE = "Held-out prompts. Top: the cloud; bottom: the edge during training.";
const FINAL = "Held-out prompts. From top to bottom: the cloud, the edge before, the edge after.";
let job = null; // the job on display

async function distil() {
  clearProblems(form, status);
  const data = new FormData(form);
  const whole = (name) => (/^\d+$/.test(data.get(name)) ? Number(data.get(name)) : data.get(name));
  const prompts = data.get("prompts").split("\n").map((line) => line.trim()).filter(Boolean);
  const body = { topic: data.get("topic"), prompts, force: data.has("force") };
  for (const name of ["images", "steps"]) if (data.get(name).trim()) body[name] = whole(name); // else the profile's
  try {
    await watch(await askJson("POST", "v1/knowledge", body));
  } catch (error) {
    showProblem(error, form, status, (field) => (field.startsWith("prompts") ? "topic-prompts" : field));
  }
}

async function watch(started) {
  job = started;
  setBusy(true);
  let preview = 0;
  try {
    for (let tries = 0; tries < 30 && !over(job); tries++) {
      if (tries) await new Promise((done) => setTimeout(done, 1000)); // a stream may end early, or break off
      await follow(`v1/jobs/${job.id}/events`, (state) => {
        job = state;
        showJob();
        if (job.stage === "train" && performance.now() - preview > 2000) {
          preview = performance.now();
          showSamples(`v1/jobs/${job.id}/preview`, LIVE);
        }
      }).catch((error) => {
        if (!(error instanceof Problem && [0, 503].includes(error.status))) throw error;
      });
    }
    if (!over(job)) throw new Problem(0, `The gateway does not respond; job ${job.id} may go on when it is back.`);
  } finally {
    setBusy(false);
  }
  if (job.status !== "finished") return;
  if (job.kept_aside) return showSamples(`v1/jobs/${job.id}/preview`, FINAL);
  await showSamples(`v1/knowledge/${encodeURIComponent(job.topic)}/samples`, FINAL);
  await listKnown();
}

const over = ({ status: now }) => ["finished", "failed", "cancelled"].includes(now);

function setBusy(busy) {
  find("button[type=submit]", form).disabled = busy;
  find("#cancel").disabled = !busy;
  find("#progress-label").hidden = !busy;
}

function showJob() {
  const progress = find("#progress");
  progress.max = job.total || 1;
  progress.value = job.done;
  const loss = job.loss === null ? "" : `, loss ${job.loss.toFixed(3)}`;
  const said = {
    queued: `${job.topic}: waiting for a distiller.`,
    running: `${job.topic}: ${STAGES[job.stage] ?? "starting"}${job.total ? `, ${job.done} of ${job.total}` : ""}${loss}.`,
    finished: job.kept_aside
      ? `${job.topic}: not published: ${job.kept_aside}. Use more images and steps, or publish it even so.`
      : `${job.topic}: published as version ${job.version}. Send a prompt that needs it.`,
    failed: `${job.topic}: failed. ${job.error ?? ""}`,
    cancelled: `${job.topic}: cancelled; nothing was published.`,
  }[job.status];
  status.textContent = said;
}

/** Shows a sheet of samples, if there is one. */
async function showSamples(path, caption) {
  const figure = find("#samples");
  const img = find("img", figure);
  try {
    const url = await pictureUrl(path);
    URL.revokeObjectURL(img.src);
    img.src = url;
  } catch {
    return;
  }
  img.alt = caption;
  find("figcaption", figure).textContent = caption;
  figure.hidden = false;
}

/** Offers the profile's own topics and their prompts, if it has some, instead of the sticker world's; notes its size. */
export async function readProfile() {
  const { size, topics: own } = await askJson("GET", "profile.json");
  if (size) setSize(size);
  const [names, prompts] = [Object.keys(own), Object.values(own).flat()];
  if (!names.length) return;
  find("#topics").replaceChildren(...names.map((name) => make("option", {}, name)));
  for (const [input, [first]] of [["#topic", names], ["#prompt", prompts]])
    if (find(input).value === find(input).defaultValue) find(input).value = first;
  offer(prompts);
}

async function listKnown() {
  const known = (await askJson("GET", "v1/knowledge")).data;
  setKnown(known);
  find("#known").replaceChildren(
    ...known.map((each) => {
      const show = make("button", { type: "button", class: "plain", "aria-label": `Samples of ${each.topic}` }, "Samples");
      show.addEventListener("click", () => showSamples(`v1/knowledge/${encodeURIComponent(each.topic)}/samples`, FINAL));
      const forget = make("button", { type: "button", class: "plain", "aria-label": `Forget ${each.topic}` }, "Forget");
      forget.addEventListener("click", () => forgetTopic(each.topic));
      const made = new Date(1000 * each.created).toISOString().slice(0, 16).replace("T", " ");
      const { topic, consistency, version, size_bytes: bytes } = each;
      const lately = consistency && `${number(consistency.recent, 2)}${consistency.drifting ? ", drifting: distil again" : ""}`;
      return row(topic, number(version), number(bytes), made, lately ?? "–", make("span", {}, show, " ", forget));
    }),
  );
  if (!known.length) find("#known").replaceChildren(make("tr", {}, make("td", { colspan: 6 }, "No topic yet.")));
}

async function forgetTopic(topic) {
  try {
    await ask("DELETE", `v1/knowledge/${encodeURIComponent(topic)}`);
    await listKnown();
    status.textContent = `${topic}: removed.`;
  } catch (error) {
    showProblem(error, form, status);
  }
}

export async function start() {
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    distil();
  });
  find("#cancel").addEventListener("click", () =>
    ask("DELETE", `v1/jobs/${job.id}`).catch((error) => showProblem(error, form, status)));
  await listKnown();
  const running = (await askJson("GET", "v1/jobs")).data.find((each) => !over(each));
  if (running) watch(running).catch((error) => showProblem(error, form, status)); // after the page was reloaded
}
