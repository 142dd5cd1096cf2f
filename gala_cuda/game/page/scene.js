/** What is drawn of a round: the picture under a veil that the brush wipes away, and what the partner saw of it. */

import { SIXTEENTHS } from "./brush.js";

const REVEALED = 21 / 14; // of a bubble's side: the square that the partner sees
const NOISE = 0.4; // standard deviation of what the partner sees elsewhere, of values from 0 to 1
const DARKER = 0.5;
const LARGEST_VIEW = 1000; // pixels of its longer side
const VEIL = "rgb(18 14 30 / 52%)";
const GLOW = "#ffb020";
const VEIL_MS = 250; // to come down

const newCanvas = (width, height) => Object.assign(document.createElement("canvas"), { width, height });

export class Scene {
  /** image: anything that drawImage takes, of width x height pixels; bubble: the side of a bubble in such pixels. */
  constructor(canvas, image, width, height, bubble) {
    Object.assign(this, { canvas, image, width, height, bubble });
    canvas.style.setProperty("--ratio", width / height);
    this.resized = new ResizeObserver(() => this.fit());
    this.resized.observe(canvas);
    this.picture = newCanvas(1, 1); // as large as it is drawn
    this.veil = newCanvas(1, 1);
    this.state = { points: [], elapsed: 0, cursor: null };
    this.fit();
  }

  /** As many pixels as the screen has for it. */
  fit() {
    const { width } = this.canvas.getBoundingClientRect();
    this.scale = Math.max(width * devicePixelRatio, 1) / this.width;
    for (const canvas of [this.canvas, this.picture, this.veil]) {
      canvas.width = Math.max(1, Math.round(this.width * this.scale));
      canvas.height = Math.max(1, Math.round(this.height * this.scale));
    }
    const context = this.picture.getContext("2d");
    context.imageSmoothingQuality = "high";
    context.drawImage(this.image, 0, 0, this.picture.width, this.picture.height);
    this.veiled = -1; // bubbles wiped out of the veil as it is
    this.drawn = null;
    this.draw(this.state);
  }

  /** points: the bubbles so far; elapsed: ms since the first; cursor: the keyboard's place before it, or null. */
  draw(state) {
    this.state = state;
    const { points, elapsed, cursor } = state;
    const alpha = points.length ? Math.min(1, elapsed / VEIL_MS) : 0;
    const now = `${points.length} ${alpha} ${cursor}`;
    if (now === this.drawn) return;
    this.drawn = now;
    const context = this.canvas.getContext("2d");
    context.drawImage(this.picture, 0, 0);
    if (alpha > 0) {
      if (this.veiled !== points.length) this.#wipe(points);
      context.globalAlpha = alpha;
      context.drawImage(this.veil, 0, 0);
      context.globalAlpha = 1;
    }
    if (cursor) this.#outline(context, cursor);
  }

  close() {
    this.resized.disconnect();
  }

  #square([x, y], side) {
    return [(x / SIXTEENTHS - side / 2) * this.scale, (y / SIXTEENTHS - side / 2) * this.scale, side * this.scale, side * this.scale];
  }

  /** The veil with a hole for every bubble and a rim of light around them all. */
  #wipe(points) {
    const context = this.veil.getContext("2d");
    const rim = (4 * devicePixelRatio) / this.scale;
    context.clearRect(0, 0, this.veil.width, this.veil.height);
    context.fillStyle = VEIL;
    context.fillRect(0, 0, this.veil.width, this.veil.height);
    context.fillStyle = GLOW;
    for (const point of points) context.fillRect(...this.#square(point, this.bubble + rim));
    for (const point of points) context.clearRect(...this.#square(point, this.bubble));
    this.veiled = points.length;
  }

  #outline(context, point) {
    const square = this.#square(point, this.bubble);
    for (const [style, width] of [["#000", 5], [GLOW, 3]]) {
      context.strokeStyle = style;
      context.lineWidth = width * devicePixelRatio;
      context.strokeRect(...square);
    }
  }
}

/** Draw what the partner saw after these bubbles: their squares, and the rest dark and noisy; large pictures smaller. */
export function drawView(canvas, image, width, height, bubble, points) {
  const scale = Math.min(1, LARGEST_VIEW / Math.max(width, height));
  Object.assign(canvas, { width: Math.ceil(width * scale), height: Math.ceil(height * scale) });
  canvas.style.setProperty("--ratio", width / height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(image, 0, 0, canvas.width, canvas.height);
  const view = context.getImageData(0, 0, canvas.width, canvas.height);
  const scaled = points.map(([x, y]) => [x * scale, y * scale]);
  const shown = revealed(canvas.width, canvas.height, bubble * scale, scaled);
  const next = normal(points.length);
  for (let pixel = 0; pixel < shown.length; pixel++) {
    if (shown[pixel]) continue;
    for (let at = 4 * pixel; at < 4 * pixel + 3; at++) {
      view.data[at] = 255 * (view.data[at] / 255 + NOISE * next() - DARKER); // clipped as it is stored
    }
  }
  context.putImageData(view, 0, 0);
}

/** Which pixels, row by row, the partner sees after these bubbles: 1, the others 0. */
export function revealed(width, height, bubble, points) {
  const side = Math.round(REVEALED * bubble);
  const shown = new Uint8Array(width * height);
  for (const [x, y] of points) {
    const left = Math.floor(x / SIXTEENTHS - side / 2 + 0.5);
    const top = Math.floor(y / SIXTEENTHS - side / 2 + 0.5);
    for (let row = Math.max(top, 0); row < Math.min(top + side, height); row++) {
      shown.fill(1, row * width + Math.max(left, 0), row * width + Math.max(0, Math.min(left + side, width)));
    }
  }
  return shown;
}

/** Numbers of a standard normal distribution, the same for the same seed (mulberry32, Box and Muller). */
function normal(seed) {
  const uniform = () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let mixed = Math.imul(seed ^ (seed >>> 15), seed | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
  return () => Math.sqrt(-2 * Math.log(1 - uniform())) * Math.cos(2 * Math.PI * uniform());
}
