/** The brush: where the pointer was, and when -> bubbles. Nothing here touches the page or a clock.
 *
 * Places are whole sixteenths of an image pixel, times milliseconds of one steady clock. */

export const SIXTEENTHS = 16;
export const MOST_BUBBLES = 140;

/** A coordinate on the page as sixteenths of an image pixel, kept inside the image. */
export function toSixteenths(client, start, extent, pixels) {
  const place = Math.floor(((client - start) / extent) * pixels * SIXTEENTHS + 0.5);
  return Math.min(Math.max(place, 0), pixels * SIXTEENTHS);
}

export class Brush {
  /** Sizes in image pixels; rules as the server gives them with a round. */
  constructor(width, height, rules) {
    this.right = width * SIXTEENTHS;
    this.bottom = height * SIXTEENTHS;
    this.interval = rules.interval_ms;
    this.step = rules.step * SIXTEENTHS;
    this.limit = rules.limit_ms;
    this.points = []; // [x16, y16, ms since the first bubble]
  }

  get started() {
    return this.points.length > 0;
  }

  /** No slot is left, or no bubble. */
  get done() {
    return this.started && (this.slot * this.interval >= this.limit || this.points.length >= MOST_BUBBLES);
  }

  /** The first press: the first bubble, and the start of the time. */
  press(time, x, y) {
    this.start = time;
    this.slot = 1; // the next one; slot k is due at start + k * interval
    this.points.push([x, y, 0]);
    this.target = { x, y };
  }

  /** The pointer is here from this time on. */
  move(time, x, y) {
    this.advance(time);
    this.target = { x, y };
  }

  /** From this time on go in a direction, each component -1, 0 or 1, as far as a step reaches. */
  steer(time, dx, dy) {
    this.advance(time);
    this.target = { dx, dy };
  }

  /** Every slot due before this time, with the pointer where it was at or before the slot; an exact repeat adds nothing. */
  advance(time) {
    while (!this.done && this.start + this.slot * this.interval < time) {
      const [x, y] = this.#next();
      const [lastX, lastY] = this.points.at(-1);
      if (x !== lastX || y !== lastY) this.points.push([x, y, this.slot * this.interval]);
      this.slot += 1;
    }
  }

  #next() {
    const [x, y] = this.points.at(-1);
    const { dx, dy } = this.#offset(x, y);
    const distance = Math.sqrt(dx * dx + dy * dy);
    if (distance <= this.step) return [x + dx, y + dy];
    return [x + Math.floor((dx * this.step) / distance + 0.5), y + Math.floor((dy * this.step) / distance + 0.5)];
  }

  /** From the last bubble to where the brush is wanted, inside the image. */
  #offset(x, y) {
    const { target } = this;
    if ("x" in target) return { dx: target.x - x, dy: target.y - y };
    const clamp = (place, most) => Math.min(Math.max(place, 0), most);
    return {
      dx: clamp(x + target.dx * this.step, this.right) - x,
      dy: clamp(y + target.dy * this.step, this.bottom) - y,
    };
  }
}
