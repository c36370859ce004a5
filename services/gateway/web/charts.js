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

/** Two running totals as curves: the cost of semantic delivery, and the same with conventional delivery. */
/** Bytes from cloud to edge after each image [{images, sent_bytes}], and of a file of `each` bytes for each image. */
export function backhaul(points, each) {
  const last = points.at(-1);
  const most = Math.max(1, ...points.map((point) => point.sent_bytes), each * last.images);
  const x = (images) => ((images / last.images) * 600).toFixed(1);
  const y = (bytes) => (96 - (bytes / most) * 90).toFixed(1);
  const even = crossing(points, each);
  const parts = [
    draw("path", { class: "axis", d: "M0 96H600" }),
    draw("path", { class: "curve other", d: `M0 96L600 ${y(each * last.images)}` }),
    draw("path", { class: "curve", d: `M0 96${points.map((point) => `L${x(point.images)} ${y(point.sent_bytes)}`).join("")}` }),
    draw("text", { x: 0, y: 107 }, "bytes from cloud to edge: semantic delivery with its updates, and a file for each image (straight line)"),
  ];
  if (even) parts.push(draw("path", { class: "axis", d: `M${x(even)} 0V96` }));
  return picture(
    600, 110, `Bytes from cloud to edge for ${last.images} images: ${last.sent_bytes} with semantic delivery, ` +
    `${Math.round(each * last.images)} with a file for each image`, ...parts,
  );
}

/** The images from which on semantic delivery took no more bytes than files of `each` bytes; null if it takes more. */
export function crossing(points, each) {
  let even = null;
  for (const { images, sent_bytes } of points)
    if (sent_bytes > each * images) even = null;
    else even ??= images;
  return even;
}

export function totals(history) {
  const most = Math.max(1, ...history.map(({ spent, instead }) => Math.max(spent, instead)));
  const x = (i) => (history.length < 2 ? 0 : (i / (history.length - 1)) * 600);
  const curve = (name) =>
    history.map((point, i) => `${i ? "L" : "M"}${x(i).toFixed(1)} ${(96 - (point[name] / most) * 90).toFixed(1)}`).join("");
  const last = history.at(-1);
  return picture(
    600, 110, `Channel uses so far: ${last.spent} with semantic delivery, ${last.instead} with conventional delivery`,
    draw("path", { class: "axis", d: "M0 96H600" }),
    draw("path", { class: "curve other", d: curve("instead") }),
    draw("path", { class: "curve", d: curve("spent") }),
    draw("text", { x: 0, y: 107 }, "channel uses: semantic delivery (lower curve) and the same images with conventional delivery (upper curve)"),
  );
}
