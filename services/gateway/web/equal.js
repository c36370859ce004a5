// The cloud's image as a file that takes no more channel uses than the latent: made smaller until it fits.

const SIDES = [8, 10, 12, 14, 16, 18, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 384, 512, 768];

/** The pixels of an image in base64. */
async function bitmap(base64) {
  const img = new Image();
  img.src = `data:image/png;base64,${base64}`;
  await img.decode();
  return img;
}

/** A canvas of that size with `img` on it, smoothed in steps of two. */
function resized(img, width, height) {
  let [source, w, h] = [img, img.naturalWidth, img.naturalHeight];
  for (;;) {
    [w, h] = [Math.max(width, w >> 1), Math.max(height, h >> 1)];
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [w, h];
    const context = canvas.getContext("2d");
    context.imageSmoothingQuality = "high";
    context.drawImage(source, 0, 0, w, h);
    if (w === width && h === height) return canvas;
    source = canvas;
  }
}

function psnrDb(one, other) {
  const size = [0, 0, one.width, one.height];
  const [a, b] = [one, other].map((canvas) => canvas.getContext("2d").getImageData(...size).data);
  let sum = 0;
  for (let i = 0; i < a.length; i++) if (i % 4 !== 3) sum += (a[i] - b[i]) ** 2;
  return 10 * Math.log10(255 ** 2 / (sum / ((3 * a.length) / 4)));
}

/**
 * Sends ever smaller copies of an image as files and returns the largest that takes at most `budget` channel uses:
 * {image, width, height, psnr_db}, its PSNR against the image; null if not even the smallest fits.
 *
 * `deliver` sends a picture in base64 and returns what the gateway responds.
 */
export async function fit(reference, budget, deliver) {
  const whole = await bitmap(reference);
  const [width, height] = [whole.naturalWidth, whole.naturalHeight];
  const sides = SIDES.filter((side) => side < Math.max(width, height));
  let [low, high, best] = [0, sides.length - 1, null];
  while (low <= high) {
    const middle = (low + high) >> 1;
    const scale = sides[middle] / Math.max(width, height);
    const [w, h] = [Math.max(1, Math.round(width * scale)), Math.max(1, Math.round(height * scale))];
    const png = resized(whole, w, h).toDataURL("image/png");
    const image = await deliver(png.slice(png.indexOf(",") + 1));
    const { channel_uses: uses, pilot_uses: pilots } = image.link_report;
    if (uses + pilots <= budget) {
      best = { image, width: w, height: h };
      low = middle + 1;
    } else high = middle - 1;
  }
  if (!best?.image.b64_json) return best && { ...best, psnr_db: null };
  const received = resized(await bitmap(best.image.b64_json), width, height);
  return { ...best, psnr_db: psnrDb(received, resized(whole, width, height)) };
}
