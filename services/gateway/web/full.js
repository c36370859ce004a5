// Two images in full size, in a dialog over the page.

import { compare } from "./compare.js";
import { find } from "./dom.js";

const dialog = find("#full");

/** Opens the dialog with two images as `compare` takes them; the right one can be downloaded. */
export function open(title, left, right, said = "") {
  find("h2", dialog).textContent = title;
  compare(find(".compare", dialog), [left, right]);
  find(".facts", dialog).textContent = said;
  find("#download").href = right.src;
  dialog.showModal();
}

export function start() {
  find(".close", dialog).addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
}
