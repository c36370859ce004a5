// A file that is chosen, or dropped on the page: a picture to send, or an image of this system, which says how it was made.

import { Problem } from "./api.js";
import { find } from "./dom.js";
import { readOrigin } from "./origin.js";

const input = find("#picture");
const prompt = find("#prompt");
const offer = find("#origin");
let offered = null; // the file on offer, and its origin

/** A file in base64. */
export async function base64(file) {
  const reader = new FileReader();
  await new Promise((resolve, reject) => {
    reader.onload = resolve;
    reader.onerror = () => reject(new Problem(0, "", [{ field: "picture", detail: "This file cannot be read." }]));
    reader.readAsDataURL(file);
  });
  return reader.result.slice(reader.result.indexOf(",") + 1);
}

/** Shows whether there is a picture: the prompt of an example then does not describe what is sent. */
function changed() {
  const [file] = input.files;
  find("#no-picture").hidden = !file;
  find("#own .now").textContent = file?.name ?? "";
  if (file) find("#own").open = true;
  if (file && prompt.value === prompt.defaultValue) prompt.value = "";
  if (!file && prompt.value === "") prompt.value = prompt.defaultValue;
}

/** Removes the picture, and what was said of a file. */
export function remove() {
  input.value = "";
  offer.hidden = true;
  changed();
}

/** Says in the offer what came of it. */
export function say(text) {
  find("#origin-said").textContent = text;
}

function show({ file, origin }) {
  const { request } = origin;
  offer.hidden = false;
  find(".buttons", offer).hidden = false;
  find("#ask-again").hidden = find("details", offer).hidden = !request;
  if (!request) return say(`${file.name} is an image of DeKA-g, but what was written into it is damaged.`);
  const { prompt: text, seed, delivery = "semantic", link: { snr_db = 10, fading = "rayleigh" } = {} } = request;
  say(`${file.name} was made here: “${text}”, seed ${seed}, ${snr_db} dB ${fading}, ${delivery}.`);
  find("#origin-request").textContent = JSON.stringify(request, null, 1);
}

/** Takes a chosen file; `onPicture` is called if it is there to be sent. */
async function take(onPicture) {
  offer.hidden = true;
  const [file] = input.files;
  const origin = file ? await readOrigin(file).catch(() => null) : null; // a file that cannot be read is refused later
  if (input.files[0] !== file) return; // another one was chosen meanwhile
  if (!origin) {
    changed();
    return onPicture();
  }
  remove();
  offered = { file, origin };
  show(offered);
}

function give(files) {
  const transfer = new DataTransfer();
  for (const file of files) transfer.items.add(file);
  input.files = transfer.files;
}

/**
 * `onPicture()` is called after a picture was chosen or removed, with true if it is to be sent in any case;
 * `onAgain(file, origin)` to make an image again; `onRefused(text)` if nothing was taken.
 */
export function start({ onPicture, onAgain, onRefused }) {
  input.addEventListener("change", (event) => {
    event.stopPropagation(); // the form would send it before it is read
    take(onPicture);
  });
  find("#no-picture").addEventListener("click", () => {
    remove();
    onPicture();
  });
  find("#ask-again").addEventListener("click", () => {
    find(".buttons", offer).hidden = true;
    onAgain(offered.file, offered.origin);
  });
  find("#send-picture").addEventListener("click", () => {
    give([offered.file]);
    offer.hidden = true;
    changed();
    onPicture(true);
  });
  const drop = find("#drop");
  for (const kind of ["dragover", "dragleave", "drop"])
    addEventListener(kind, (event) => {
      if (!event.dataTransfer.types.includes("Files")) return; // text, for a field
      event.preventDefault(); // the browser would leave the page for the file
      drop.classList.toggle("over", kind === "dragover");
      find("#own").open = true;
      if (kind !== "drop" || !event.dataTransfer.files.length) return;
      if (event.dataTransfer.files.length > 1) return onRefused("One picture at a time: nothing was taken.");
      give(event.dataTransfer.files);
      drop.scrollIntoView({ block: "nearest" });
      take(onPicture);
    });
}
