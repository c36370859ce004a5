// What all requests to this gateway have cost so far, and what they would have conventionally.

import { askJson } from "./api.js";
import { TITLES } from "./cards.js";
import { totals } from "./charts.js";
import { find, number, row } from "./dom.js";

const EVERY_MS = 3000;
const SHOWN = 300; // points of the curves
const history = [];

async function look() {
  const { deliveries, saved } = await askJson("GET", "v1/traffic");
  find("#totals").replaceChildren(
    ...Object.keys(TITLES).filter((delivery) => deliveries[delivery]).map((delivery) => {
      const { images, channel_uses, hops } = deliveries[delivery];
      const backhaul = hops.find(({ hop }) => hop === "cloud-edge")?.sent_bytes ?? 0;
      return row(TITLES[delivery], number(images), number(channel_uses / images), number(backhaul / images));
    }),
  );
  if (!saved) {
    find("#saved").textContent = "What is saved can be said once a semantic and a conventional picture were sent.";
    return;
  }
  find("#saved").textContent =
    `Semantic delivery took ${number(saved.channel_uses_spent)} channel uses where the same number of conventional ` +
    `pictures would have taken ${number(saved.channel_uses_instead)}, and ${number(saved.backhaul_bytes_spent)} bytes ` +
    `from cloud to edge, knowledge updates included, instead of ${number(saved.backhaul_bytes_instead)}.`;
  history.push({ spent: saved.channel_uses_spent, instead: saved.channel_uses_instead });
  if (history.length > SHOWN) history.shift();
  find("#traffic-chart").replaceChildren(totals(history));
}

export async function start() {
  for (;;) {
    if (!document.hidden) await look().catch((error) => (find("#saved").textContent = error.message));
    await new Promise((done) => setTimeout(done, EVERY_MS));
  }
}
