// Heat on pictures, as semprobe.heatmaps.overlay paints it.

const PLASMA = ["0d0887", "46039f", "7201a8", "9c179e", "bd3786", "d8576b", "ed7953", "fb9f3a", "fdca26", "f0f921"]
  .map((stop) => [0, 2, 4].map((at) => parseInt(stop.slice(at, at + 2), 16)));

function colour(share) {
  const place = share * (PLASMA.length - 1);
  const low = Math.min(Math.floor(place), PLASMA.length - 2);
  const [from, to] = [PLASMA[low], PLASMA[low + 1]];
  return `rgb(${from.map((one, k) => Math.round(one + (to[k] - one) * (place - low))).join(" ")})`;
}

// first pixel whose centre lies beyond an edge
const pixel = (edge) => Math.ceil(edge - 0.5);

/** Left, top, right and bottom of a patch in pixels of a picture of this size. */
export function box({crop, heat}, row, column, width, height) {
  const [left, top, right, bottom] = [crop[0] * width, crop[1] * height, crop[2] * width, crop[3] * height];
  const x = (k) => pixel(left + ((right - left) * k) / heat[0].length);
  const y = (k) => pixel(top + ((bottom - top) * k) / heat.length);
  return [x(column), y(row), x(column + 1), y(row + 1)];
}

/** Row and column of the patch at a point of the picture, given as shares of its width and height; null outside. */
export function patchAt({crop, heat}, x, y) {
  if (!heat) return null;
  const column = Math.floor(((x - crop[0]) / (crop[2] - crop[0])) * heat[0].length);
  const row = Math.floor(((y - crop[1]) / (crop[3] - crop[1])) * heat.length);
  return heat[row]?.[column] === undefined ? null : [row, column];
}

/** Paints a picture with its heat; cover is `opacity * sqrt(code / largest)`, grey is what the model did not see. */
export function paint(canvas, image, picture, largest, opacity, cursor = null) {
  const [width, height] = [image.naturalWidth, image.naturalHeight];
  Object.assign(canvas, {width, height});
  const pen = canvas.getContext("2d");
  pen.drawImage(image, 0, 0);
  if (!picture.heat) return;
  const {heat} = picture;
  const fill = (x, y, w, h, style, cover) => {
    pen.globalCompositeOperation = "saturation"; // or colours of picture and code mix
    pen.globalAlpha = 1;
    pen.fillStyle = "#808080";
    pen.fillRect(x, y, w, h);
    pen.globalCompositeOperation = "source-over";
    pen.globalAlpha = cover;
    pen.fillStyle = style;
    pen.fillRect(x, y, w, h);
  };
  pen.save();
  pen.beginPath();
  pen.rect(0, 0, width, height);
  const first = box(picture, 0, 0, width, height);
  const last = box(picture, heat.length - 1, heat[0].length - 1, width, height);
  pen.rect(first[0], first[1], last[2] - first[0], last[3] - first[1]);
  pen.clip("evenodd");
  fill(0, 0, width, height, "rgb(96 96 96)", 0.6);
  pen.restore();
  if (opacity > 0 && largest > 0) {
    heat.forEach((codes, row) => codes.forEach((code, column) => {
      if (code <= 0) return;
      const share = Math.min(1, code / largest);
      const [left, top, right, bottom] = box(picture, row, column, width, height);
      fill(left, top, right - left, bottom - top, colour(share), opacity * Math.sqrt(share));
    }));
  }
  pen.globalAlpha = 1;
  if (!cursor) return;
  const [left, top, right, bottom] = box(picture, ...cursor, width, height);
  for (const [style, by] of [["black", 1], ["white", 3]]) {
    pen.strokeStyle = style;
    pen.lineWidth = 2;
    pen.strokeRect(left - by, top - by, right - left + 2 * by, bottom - top + 2 * by);
  }
}
