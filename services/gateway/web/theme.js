// Light, dark, or as the system says; kept in this browser.

import { find } from "./dom.js";

const THEMES = ["auto", "light", "dark"];

function show(theme) {
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  const button = find("#theme");
  button.dataset.shown = theme;
  button.setAttribute("aria-label", `Colours: ${theme === "auto" ? "as the system" : theme}. Change`);
}

export function start() {
  let theme = localStorage.getItem("dekag-theme");
  if (!THEMES.includes(theme)) theme = "auto";
  show(theme);
  find("#theme").addEventListener("click", () => {
    theme = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
    localStorage.setItem("dekag-theme", theme);
    show(theme);
  });
}
