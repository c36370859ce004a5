// Cost of all requests to this gateway so far, and the cost of the same requests with conventional delivery.

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
    find("#saved").textContent = "The saving appears after the first semantic and the first conventional image.";
    return;
  }
  find("#saved").textContent =
    `Semantic delivery took ${number(saved.channel_uses_spent)} channel uses; conventional delivery of as many images ` +
    `would have taken ${number(saved.channel_uses_instead)}. From cloud to edge it took ` +
    `${number(saved.backhaul_bytes_spent)} bytes, knowledge updates included, instead of ${number(saved.backhaul_bytes_instead)}.`;
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
