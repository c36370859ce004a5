// What this system wrote into the files of its images: the request, and the models. dekag/api/image_file.py writes it.

const KEYWORD = "dekag\0"; // of a PNG's text chunk
const EXIF = "Exif\0\0";
const COMMENT = "ASCII\0\0\0"; // of EXIF's UserComment
const [EXIF_FOLDER, USER_COMMENT] = [0x8769, 0x9286];

const MAX_BYTES = 2 ** 25; // a larger file is none of this system's

/** A character for each byte: TextDecoder("latin1") decodes windows-1252. */
const text = (view, at, length) =>
  Array.from(new Uint8Array(view.buffer, at, Math.min(length, view.byteLength - at)), (byte) => String.fromCharCode(byte)).join("");

function ofPng(view) {
  for (let at = 8; text(view, at + 4, 4) !== "IDAT"; at += 12 + view.getUint32(at)) {
    if (text(view, at + 4, 4) === "tEXt" && text(view, at + 8, KEYWORD.length) === KEYWORD)
      return text(view, at + 8 + KEYWORD.length, view.getUint32(at) - KEYWORD.length);
  }
  return null;
}

function ofJpeg(view) {
  for (let at = 2; view.getUint8(at + 1) !== 0xda; at += 2 + view.getUint16(at + 2))
    if (view.getUint8(at + 1) === 0xe1 && text(view, at + 4, 6) === EXIF) return ofExif(view, at + 10);
  return null;
}

function ofWebp(view) {
  for (let at = 12; at + 8 <= view.byteLength; ) {
    const size = view.getUint32(at + 4, true);
    if (text(view, at, 4) === "EXIF") return ofExif(view, text(view, at + 8, 6) === EXIF ? at + 14 : at + 8);
    at += 8 + size + (size % 2);
  }
  return null;
}

/** The user's comment in EXIF data that starts at `start`. */
function ofExif(view, start) {
  const little = text(view, start, 2) === "II";
  const entry = (folder, tag) => {
    for (let i = 0; i < view.getUint16(start + folder, little); i++) {
      const at = start + folder + 2 + 12 * i;
      if (view.getUint16(at, little) === tag) return [view.getUint32(at + 4, little), view.getUint32(at + 8, little)];
    }
    return null;
  };
  const folder = entry(view.getUint32(start + 4, little), EXIF_FOLDER);
  const comment = folder && entry(folder[1], USER_COMMENT);
  const said = comment && text(view, start + comment[1], comment[0]);
  return said?.startsWith(COMMENT) ? said.slice(COMMENT.length) : null;
}

const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);
const isUpdate = (value) => isObject(value) && typeof value.topic === "string" && typeof value.content_hash === "string";

function isOrigin({ request, model_hashes, knowledge }) {
  const { prompt, link = {} } = request;
  return typeof prompt === "string" && isObject(link) && isObject(model_hashes) && Array.isArray(knowledge) && knowledge.every(isUpdate);
}

/**
 * The origin {request, model_hashes, knowledge} of an image file; null if it is a foreign file, and {request: null} if what
 * this system wrote is damaged.
 */
export async function readOrigin(file) {
  if (file.size > MAX_BYTES) return null;
  const view = new DataView(await file.arrayBuffer());
  let found = null;
  try {
    if (text(view, 1, 3) === "PNG") found = ofPng(view);
    else if (view.getUint16(0) === 0xffd8) found = ofJpeg(view);
    else if (text(view, 0, 4) === "RIFF" && text(view, 8, 4) === "WEBP") found = ofWebp(view);
  } catch (error) {
    if (!(error instanceof RangeError)) throw error; // the file ends early: the gateway says so
  }
  if (found === null) return null;
  try {
    const origin = JSON.parse(found.replace(/"seed":(\d{16,})/, '"seed":"$1"')); // numbers here hold 53 bits
    if (isOrigin(origin)) return origin;
  } catch { /* as below */ }
  return { request: null };
}

/** What differs between an image and that of a file, in a sentence. */
export async function compared(origin, file, image) {
  const { model_hashes: models, knowledge } = image.link_report;
  const hashes = (made) => ({
    ...made.model_hashes,
    ...Object.fromEntries(made.knowledge.map((each) => [`topic ${each.topic}`, each.content_hash])),
  });
  const [before, now] = [hashes(origin), hashes({ model_hashes: models, knowledge })];
  const names = new Set([...Object.keys(before), ...Object.keys(now)]);
  const other = [...names].filter((name) => before[name] !== now[name]).sort();
  if (other.length) return `Made by other models than the file: ${other.join(", ")}.`;
  if (!image.b64_json) return "Made by the same models; this time, it was not decoded.";
  if (file.type !== "image/png") return "Made by the same models; pixels are compared with those of PNG files alone.";
  const bytes = Uint8Array.from(atob(image.b64_json), (char) => char.charCodeAt(0));
  const [one, two] = await Promise.all([pixels(file), pixels(new Blob([bytes]))]);
  if (one.width !== two.width || one.height !== two.height) return "Made by the same models, in another size than the file.";
  let different = 0;
  for (let i = 0; i < one.data.length; i += 4)
    if ([0, 1, 2].some((colour) => one.data[i + colour] !== two.data[i + colour])) different++;
  return different
    ? `Made by the same models, but ${different} pixels differ: the file was edited, or made on another kind of processor.`
    : "The same image as in the file, pixel for pixel.";
}

async function pixels(blob) {
  const bitmap = await createImageBitmap(blob, { colorSpaceConversion: "none" });
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [bitmap.width, bitmap.height];
  const context = canvas.getContext("2d");
  context.drawImage(bitmap, 0, 0);
  return context.getImageData(0, 0, bitmap.width, bitmap.height);
}
