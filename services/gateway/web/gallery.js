// What was asked for in this browser: the image that arrived, and the link that asks for it again.

import { find, make } from "./dom.js";

const KEY = "dekag-gallery";
const MOST = 12;
const SIDE = 256;

const read = () => {
  try {
    const kept = JSON.parse(localStorage.getItem(KEY));
    return Array.isArray(kept) ? kept : [];
  } catch {
    return [];
  }
};

function write(entries) {
  try {
    localStorage.setItem(KEY, JSON.stringify(entries));
  } catch {
    find("#gallery-said").textContent = "This browser has no room for more images; the gallery is not kept.";
  }
}

async function small(src) {
  const img = new Image();
  img.src = src;
  await img.decode();
  const canvas = document.createElement("canvas");
  const scale = Math.min(1, SIDE / Math.max(img.naturalWidth, img.naturalHeight));
  [canvas.width, canvas.height] = [img.naturalWidth * scale, img.naturalHeight * scale];
  canvas.getContext("2d").drawImage(img, 0, 0, canvas.width, canvas.height);
  return canvas.toDataURL("image/webp", 0.85);
}

function show(entries) {
  find("#asked").replaceChildren(
    ...entries.map(({ title, said, href, src }) => {
      const img = make("img", { src, alt: "", width: SIDE, height: SIDE });
      const about = [make("strong", {}, title), make("span", {}, said)];
      const link = href ? make("a", { href }, img, ...about) : make("div", {}, img, ...about);
      return make("li", {}, link);
    }),
  );
  find("#clear-gallery").hidden = !entries.length;
}

/** Adds an image {title, said, href, src}; a request that is there already moves to the front. */
export async function add(entry) {
  const kept = { ...entry, src: await small(entry.src) };
  const same = (each) => (entry.href ? each.href === entry.href : each.src === kept.src);
  const entries = [kept, ...read().filter((each) => !same(each))].slice(0, MOST);
  show(entries);
  write(entries);
}

export function start() {
  show(read());
  find("#clear-gallery").addEventListener("click", () => {
    localStorage.removeItem(KEY);
    show([]);
  });
}
