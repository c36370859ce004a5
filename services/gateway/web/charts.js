// Small charts as SVG. Each has a text alternative.

const SVG = "http://www.w3.org/2000/svg";

function draw(name, attributes, ...children) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

const picture = (width, height, label, ...children) =>
  draw("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label }, ...children);

/** Symbols [[re, im], ...] in the complex plane, from -2 to 2. */
export function constellation(points, name) {
  const at = (value) => (50 + 24 * Math.max(-2, Math.min(2, value))).toFixed(1);
  const dots = points.map(([re, im]) => `M${at(re)} ${at(-im)}h0`).join("");
  return picture(
    100, 100, `${points.length} symbols ${name}, in the complex plane from -2 to 2`,
    draw("path", { class: "axis", d: "M2 2h96v96h-96zM50 2v96M2 50h96" }),
    draw("path", { class: "points", d: dots }),
  );
}

/** Gains [[re, im], ...] as |h|² in dB, from -30 to 10 dB: a bar for each, or a curve if there are many. */
export function fading(gains) {
  const power = gains.map(([re, im]) => 10 * Math.log10(Math.max(re * re + im * im, 1e-12)));
  const y = (db) => 70 - (Math.max(-30, Math.min(10, db)) + 30) * 1.6;
  const lines = [-30, -20, -10, 0, 10].flatMap((db) => [
    draw("path", { class: "axis", d: `M22 ${y(db)}H300` }),
    draw("text", { x: 18, y: y(db) + 3, "text-anchor": "end" }, `${db}`),
  ]);
  const step = 276 / power.length;
  const shape =
    power.length <= 64
      ? power.map((db, i) =>
          draw("rect", { class: "bar", x: 24 + i * step, y: y(db), width: Math.max(step - 2, 1), height: 70 - y(db) }))
      : [draw("path", { class: "curve", d: power.map((db, i) => `${i ? "L" : "M"}${24 + i * step} ${y(db)}`).join("") })];
  const range = `${Math.min(...power).toFixed(1)} to ${Math.max(...power).toFixed(1)} dB`;
  return picture(304, 74, `Gain of ${power.length} blocks: ${range}`, ...lines, ...shape);
}

/** A figure: a chart, and below it what its curves are: [[class, text], ...]. */
function figure(chart, legend) {
  const element = document.createElement("figure");
  const caption = document.createElement("figcaption");
  caption.className = "legend";
  for (const [kind, text] of legend) {
    const entry = document.createElement("span");
    entry.dataset.kind = kind;
    entry.textContent = text;
    caption.append(entry);
  }
  element.append(chart, caption);
  return element;
}

/** Evenly spaced round numbers from at most `low` to at least `high`; around both, if they are equal. */
function ticks(low, high, most) {
  if (low === high) return ticks(low - 1, high + 1, most);
  const rough = (high - low) / most;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((each) => each >= rough);
  const first = Math.floor(low / step) * step;
  const count = Math.ceil((high - first) / step - 1e-9);
  return Array.from({ length: count + 1 }, (_, i) => Number((first + i * step).toPrecision(10)));
}

/**
 * Curves [{delivery, title, points: [{x, y}]}] over SNR, with a line at the present one.
 *
 * `width` is in pixels; `range` the least extent of the y axis, null for that of the data; `onChoice` is called with the
 * SNR of a click.
 */
export function curves(lines, { width, from, to, now, unit, range, onChoice }) {
  const [height, left, right, top, bottom] = [Math.min(340, Math.max(220, width * 0.4)), 44, 16, 16, 40];
  const values = lines.flatMap(({ points }) => points.map(({ y }) => y));
  const least = range ?? (values.length > 1 ? [] : [10, 40]);
  const rows = ticks(Math.min(...values, ...least), Math.max(...values, ...least), 5);
  const [low, high] = [rows[0], rows.at(-1)];
  const x = (db) => left + ((Math.max(from, Math.min(to, db)) - from) / (to - from)) * (width - left - right);
  const y = (value) => height - bottom - ((value - low) / (high - low)) * (height - top - bottom);
  const texts = [];
  for (const value of rows)
    texts.push(
      draw("path", { class: "axis", d: `M${left} ${y(value)}H${width - right}` }),
      draw("text", { x: left - 8, y: y(value) + 4, "text-anchor": "end" }, String(value)));
  for (let db = from; db <= to; db += 5)
    texts.push(draw("text", { x: x(db), y: height - bottom + 18, "text-anchor": "middle" }, String(db)));
  texts.push(draw("text", { x: width - right, y: height - 4, "text-anchor": "end" }, "SNR, dB"));
  const parts = lines.flatMap(({ delivery, points }) => [
    draw("path", { class: "curve", "data-kind": delivery,
      d: points.map((p, i) => `${i ? "L" : "M"}${x(p.x).toFixed(1)} ${y(p.y).toFixed(1)}`).join("") || "M0 0" }),
    ...points.map((p) => draw("circle", { class: "point", "data-kind": delivery, cx: x(p.x).toFixed(1), cy: y(p.y).toFixed(1), r: p.x === now ? 6 : 3.5 })),
  ]);
  const marker = draw("path", { class: "now", d: `M${x(now)} ${top}V${height - bottom}` });
  const said = lines.map(({ title, points }) =>
    points.length ? `${title}: ${points.map((p) => `${p.y.toFixed(2)} at ${p.x} dB`).join(", ")}` : `${title}: nothing yet`);
  const chart = picture(width, height, `${unit} against SNR. ${said.join(". ")}`, ...texts, marker, ...parts);
  chart.addEventListener("click", (event) => {
    const at = event.clientX - chart.getBoundingClientRect().left;
    onChoice(Math.round(from + ((at - left) / (width - left - right)) * (to - from)));
  });
  return figure(chart, [...lines.map(({ delivery, title }) => [delivery, title]), ["axis", unit]]);
}

const CHART = [600, 150];
const [FOOT, RISE] = [142, 132]; // pixels: the axis, and the height of the highest value

/** Bytes from cloud to edge after each image [{images, sent_bytes}], and of a file of `each` bytes for each image. */
export function backhaul(points, each) {
  const last = points.at(-1);
  const most = Math.max(1, ...points.map((point) => point.sent_bytes), each * last.images);
  const x = (images) => ((images / last.images) * CHART[0]).toFixed(1);
  const y = (bytes) => (FOOT - (bytes / most) * RISE).toFixed(1);
  const even = crossing(points, each);
  const parts = [
    draw("path", { class: "axis", d: `M0 ${FOOT}H${CHART[0]}` }),
    draw("path", { class: "curve", "data-kind": "conventional", d: `M0 ${FOOT}L${CHART[0]} ${y(each * last.images)}` }),
    draw("path", { class: "curve", "data-kind": "semantic", d: `M0 ${FOOT}${points.map((point) => `L${x(point.images)} ${y(point.sent_bytes)}`).join("")}` }),
  ];
  if (even) parts.push(draw("path", { class: "now", d: `M${x(even)} 0V${FOOT}` }));
  const chart = picture(
    ...CHART, `Bytes from cloud to edge for ${last.images} images: ${last.sent_bytes} with semantic delivery, ` +
    `${Math.round(each * last.images)} with a file for each image`, ...parts);
  return figure(chart, [["axis", "Bytes from cloud to edge:"], ["semantic", "semantic, with updates"], ["conventional", "a file for each image"]]);
}

/** The images from which on semantic delivery took no more bytes than files of `each` bytes; null if it takes more. */
export function crossing(points, each) {
  let even = null;
  for (const { images, sent_bytes } of points)
    if (sent_bytes > each * images) even = null;
    else even ??= images;
  return even;
}

/** Two running totals: channel uses of semantic delivery, and of the same images with conventional delivery. */
export function totals(history) {
  const most = Math.max(1, ...history.map(({ spent, instead }) => Math.max(spent, instead)));
  const x = (i) => (history.length < 2 ? 0 : (i / (history.length - 1)) * CHART[0]);
  const curve = (name) =>
    history.map((point, i) => `${i ? "L" : "M"}${x(i).toFixed(1)} ${(FOOT - (point[name] / most) * RISE).toFixed(1)}`).join("");
  const last = history.at(-1);
  const chart = picture(
    ...CHART, `Channel uses so far: ${last.spent} with semantic delivery, ${last.instead} with conventional delivery`,
    draw("path", { class: "axis", d: `M0 ${FOOT}H${CHART[0]}` }),
    draw("path", { class: "curve", "data-kind": "conventional", d: curve("instead") }),
    draw("path", { class: "curve", "data-kind": "semantic", d: curve("spent") }));
  return figure(chart, [["axis", "Channel uses:"], ["semantic", "semantic"], ["conventional", "the same images as files"]]);
}
