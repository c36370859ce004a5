// Two images one upon the other; a slider moves the border between them.

import { find } from "./dom.js";

/** Connects the slider of a `.compare` element with its border. */
export function connect(element) {
  const input = find("input", element);
  const move = () => {
    element.style.setProperty("--border", `${input.value}%`);
    input.setAttribute("aria-valuetext", `${input.value} % ${find(".tag.left", element).textContent}`);
  };
  input.addEventListener("input", move);
  move();
}

/**
 * Shows two images {src, alt, tag, kind, why}, or three side by side. One without a source is lost, or, if it is `awaited`,
 * still the previous one.
 */
export function compare(element, images, awaited = false) {
  element.classList.toggle("three", images.length === 3);
  const sides = images.length === 3 ? ["left", "middle", "right"] : ["left", "right"];
  for (const [i, image] of images.entries()) {
    const side = sides[i];
    const img = find(`img.${side}`, element);
    img.classList.toggle("stale", awaited && !image.src);
    img.classList.toggle("lost", !awaited && !image.src);
    if (awaited && !image.src) continue;
    img.alt = image.src ? image.alt : `${image.tag}: no image`;
    if (image.src) img.src = image.src;
    const tag = find(`.tag.${side}`, element);
    tag.textContent = image.src ? image.tag : `${image.tag}: lost`;
    tag.dataset.kind = image.kind;
    find(`.why.${side}`, element)?.replaceChildren(image.why ?? "");
  }
  find("input", element).dispatchEvent(new Event("input"));
}
