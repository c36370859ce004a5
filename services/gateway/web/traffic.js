// Cost of all requests to this gateway so far, and the cost of the same requests with conventional delivery.

import { askJson, hasKey } from "./api.js";
import { TITLES } from "./cards.js";
import { backhaul, crossing, totals } from "./charts.js";
import { find, number, row } from "./dom.js";

const ACTIONS = {
  update: "drawn with the update",
  distil: "the cloud's file, until the update is made",
  file: "the cloud's file",
  wait: "drawn without an update",
};

/** Interval between two looks, of two requests each, ms: few of those that a key may send in a minute. */
export const everyMs = () => (hasKey() ? 30_000 : 3_000);
const SHOWN = 300; // points of the curves
const history = [];

/** The quality of both deliveries in words, of their images that were measured. */
function quality({ psnr_db_spent, psnr_db_instead, consistency_spent, consistency_instead }) {
  const said = (name, ours, theirs, digits, unit = "") =>
    ours === null && theirs === null
      ? `${name} was not measured`
      : `${name} is ${number(ours, digits)}${unit} instead of ${number(theirs, digits)}${unit}`;
  return [
    said("their mean PSNR", psnr_db_spent, psnr_db_instead, 1, " dB"),
    said("their mean consistency with the cloud", consistency_spent, consistency_instead, 2),
  ].join(", ");
}

async function look() {
  const { deliveries, saved, backhaul: points } = await askJson("GET", "v1/traffic");
  find("#totals").replaceChildren(
    ...Object.keys(TITLES).filter((delivery) => deliveries[delivery]).map((delivery) => {
      const { images, channel_uses, hops } = deliveries[delivery];
      const bytes = hops.find(({ hop }) => hop === "cloud-edge")?.sent_bytes ?? 0;
      return row(TITLES[delivery], number(images), number(channel_uses / images), number(bytes / images));
    }),
  );
  if (!saved) {
    find("#saved").textContent = "The saving appears after the first semantic and the first conventional image.";
    return;
  }
  find("#saved").textContent =
    `Semantic delivery took ${number(saved.channel_uses_spent)} channel uses; conventional delivery of as many images ` +
    `would have taken ${number(saved.channel_uses_instead)}. From cloud to edge it took ` +
    `${number(saved.backhaul_bytes_spent)} bytes, knowledge updates included, instead of ${number(saved.backhaul_bytes_instead)}. ` +
    `The images are not of equal quality: ${quality(saved)}.`;
  history.push({ spent: saved.channel_uses_spent, instead: saved.channel_uses_instead });
  if (history.length > SHOWN) history.shift();
  const each = saved.backhaul_bytes_instead / points.at(-1).images; // both of generated images alone
  const even = crossing(points, each);
  find("#break-even").textContent = even
    ? `Break-even: from image ${number(even)} on, semantic delivery has taken no more bytes than files.`
    : "Break-even: not reached; semantic delivery has taken more bytes from cloud to edge than files.";
  find("#traffic-chart").replaceChildren(totals(history), backhaul(points, each));
}

async function lookAtDemand() {
  const { policy, data } = await askJson("GET", "v1/demand");
  find("#demand").hidden = policy === "off";
  find("#demand-policy").textContent = `Policy ${policy}: what the next request of each topic gets.`;
  find("#demanded").replaceChildren(
    ...data.map((topic) =>
      row(topic.topic, number(topic.requests), number(topic.file_bytes), number(topic.update_bytes),
        ACTIONS[topic.action], topic.reason)),
  );
}

export async function start() {
  for (;;) {
    if (!document.hidden) {
      await look().catch((error) => (find("#saved").textContent = error.message));
      await lookAtDemand().catch((error) => (find("#demand-policy").textContent = error.message));
    }
    await new Promise((done) => setTimeout(done, everyMs()));
  }
}
