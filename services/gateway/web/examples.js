// Prompts to try, and the world's words to compose one from.

import { find, make } from "./dom.js";
import { EXAMPLES, partsOf, promptOf, topicsOf, WORDS } from "./words.js";

const prompt = find("#prompt");
let taught = new Set(); // topics of the edge
let onPick = () => {};

const unknown = (text) => topicsOf(text).some((topic) => !taught.has(topic));

function pick(text) {
  prompt.value = text;
  mark();
  onPick();
}

function chip(text, label, chosen) {
  const button = make("button", { type: "button", class: "chip" }, text);
  button.addEventListener("click", () => pick(chosen()));
  button.dataset.text = label;
  return button;
}

/** Marks the words that the prompt has, and those that the edge does not know. */
function mark() {
  const parts = partsOf(prompt.value);
  for (const button of document.querySelectorAll("#examples .chip, #words .chip")) {
    const { part, text } = button.dataset;
    button.setAttribute("aria-pressed", part ? parts[part] === text : prompt.value === text);
    button.classList.toggle("new", unknown(text));
  }
}

/** Notes the topics that the edge has. */
export function setTaught(topics) {
  taught = new Set(topics);
  mark();
}

/** Offers these prompts alone: those of a profile with topics of its own. */
export function offer(prompts) {
  find("#examples").replaceChildren(...prompts.slice(0, 8).map((text) => chip(text, text, () => text)));
  find("#composer").hidden = true;
  mark();
}

/** Fills the chips; `picked` is called after one has changed the prompt. */
export function start(picked) {
  onPick = picked;
  find("#examples").replaceChildren(...EXAMPLES.map((text) => chip(text, text, () => text)));
  find("#words").replaceChildren(
    ...Object.entries(WORDS).map(([part, words]) => {
      const chips = words.map((word) => {
        const button = chip(word, word, () => {
          const parts = partsOf(prompt.value);
          return promptOf({ ...parts, [part]: parts[part] === word && part !== "subject" ? null : word });
        });
        button.dataset.part = part;
        return button;
      });
      const name = make("p", { class: "note", id: `words-${part}` }, part);
      return make("div", { class: "part", role: "group", "aria-labelledby": name.id }, name, make("div", { class: "chips" }, ...chips));
    }),
  );
  prompt.addEventListener("input", mark);
  mark();
}
