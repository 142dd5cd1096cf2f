/** One round: pointer or keys move the brush, the partner guesses, and somehow it ends. */

import { Brush, SIXTEENTHS, toSixteenths } from "./brush.js";

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const PATIENCE_MS = 5000; // with the partner's last guess

const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

export class Round {
  /** game: {width, height, rules}. ask(points) -> the partner's {n, names, recognised, score}, or null where it gave none.
   *  show: what the page does when the round has {started, moved, answered, waited}. */
  constructor(canvas, scene, game, ask, show) {
    Object.assign(this, { canvas, scene, game, ask, show });
    this.brush = new Brush(game.width, game.height, game.rules);
    this.cursor = [game.width * (SIXTEENTHS / 2), game.height * (SIXTEENTHS / 2)].map(Math.round);
    this.keys = new Set();
    this.pending = new Set();
    this.asked = 0; // bubbles of the last guess asked for,
    this.judged = 0; // and of the last one answered
    this.device = null; // mouse, touch, pen or keyboard: what started the round, and alone goes on
  }

  /** -> {outcome, points, pointer, answer}; answer is the partner's when it has recognised the picture. */
  play() {
    const over = new AbortController();
    const listen = (target, names, handle) =>
      names.forEach((name) => target.addEventListener(name, (event) => handle.call(this, event), { signal: over.signal }));
    listen(this.canvas, ["pointerdown"], this.#press);
    listen(window, ["pointermove", "pointerdown"], this.#move);
    listen(window, ["pointercancel"], this.#cancel);
    listen(this.canvas, ["keydown"], this.#keydown);
    listen(window, ["keyup"], this.#keyup);
    listen(this.canvas, ["blur"], this.#blur);
    listen(document, ["visibilitychange"], () => document.hidden && this.#interrupt());
    listen(window, ["pagehide"], this.#interrupt);
    const ended = new Promise((resolve) => (this.resolve = resolve));
    const frame = (now) => {
      if (over.signal.aborted) return;
      this.#advance(now);
      requestAnimationFrame(frame);
    };
    requestAnimationFrame(frame);
    return ended.finally(() => over.abort());
  }

  /** The player, or the partner, has ended it. */
  end(outcome, answer = null) {
    this.over = true;
    this.resolve({ outcome, points: this.brush.points, pointer: this.device, answer });
  }

  #interrupt() {
    if (this.brush.started) this.end("interrupted");
  }

  #place(event) {
    const { left, top, width, height } = this.canvas.getBoundingClientRect();
    return [
      toSixteenths(event.clientX, left, width, this.game.width),
      toSixteenths(event.clientY, top, height, this.game.height),
    ];
  }

  #begin(time, place, device) {
    this.device = device;
    this.cursor = null;
    this.brush.press(time, ...place);
    this.show.started();
  }

  #press(event) {
    if (!event.isPrimary || event.button !== 0 || this.brush.started) return;
    this.#begin(event.timeStamp, this.#place(event), event.pointerType);
  }

  #move(event) {
    if (!event.isPrimary || event.pointerType !== this.device) return;
    // A finger elsewhere on the page scrolls it; one that came down on the canvas has all its events there.
    if (this.device === "touch" && event.target !== this.canvas) return;
    const path = event.getCoalescedEvents?.() ?? []; // missing where the page came by plain HTTP
    for (const part of path.length ? path : [event]) this.brush.move(part.timeStamp, ...this.#place(part));
  }

  #cancel(event) {
    if (event.isPrimary && event.pointerType === this.device) this.brush.steer(event.timeStamp, 0, 0);
  }

  #keydown(event) {
    if (event.key === " " && !this.brush.started) {
      event.preventDefault();
      this.#begin(event.timeStamp, this.cursor, "keyboard");
      this.#steer(event);
    }
    if (!(event.key in ARROWS)) return;
    event.preventDefault();
    this.keys.add(event.key);
    if (this.brush.started) this.#steer(event);
    else this.#shift(ARROWS[event.key]);
  }

  #keyup(event) {
    if (this.keys.delete(event.key)) this.#steer(event);
  }

  #blur(event) {
    this.keys.clear();
    this.#steer(event);
  }

  #steer(event) {
    if (this.device !== "keyboard") return;
    const held = [...this.keys].map((key) => ARROWS[key]);
    const sum = (axis) => held.reduce((total, arrow) => total + arrow[axis], 0);
    this.brush.steer(event.timeStamp, sum(0), sum(1));
  }

  /** Before the round starts the keyboard's cursor goes a step at every press of a key. */
  #shift([dx, dy]) {
    const step = this.game.rules.step * SIXTEENTHS;
    const ends = [this.game.width * SIXTEENTHS, this.game.height * SIXTEENTHS];
    this.cursor = [dx, dy].map((way, axis) => Math.min(Math.max(this.cursor[axis] + way * step, 0), ends[axis]));
    this.cursorSeen = true;
  }

  #advance(now) {
    const { brush, show } = this;
    if (brush.started && !this.closing) {
      brush.advance(now);
      for (const every = this.game.rules.every; this.asked + every <= brush.points.length; ) {
        this.#guess((this.asked += every));
      }
      show.moved(now - brush.start, brush.points.length);
      if (brush.done) this.#close();
    }
    const elapsed = brush.started ? now - brush.start : 0;
    this.scene.draw({ points: brush.points, elapsed, cursor: this.cursorSeen ? this.cursor : null });
  }

  #guess(n) {
    const guess = this.#answer(n).finally(() => this.pending.delete(guess));
    this.pending.add(guess);
    return guess;
  }

  async #answer(n) {
    const answer = await this.ask(this.brush.points.slice(0, n));
    if (!answer || this.over) return;
    if (answer.recognised) this.end("recognised", answer);
    if (n <= this.judged) return; // a newer guess came first
    this.judged = n;
    this.show.answered(answer);
  }

  /** The brush is done: wait for the partner's last word, and ask once more if it got lost. */
  async #close() {
    this.closing = true;
    this.show.waited();
    const patience = pause(PATIENCE_MS);
    await Promise.race([Promise.all(this.pending), patience]);
    if (this.judged < this.asked && !this.over) await Promise.race([this.#guess(this.asked), patience]);
    // A partner that was never heard has not failed to recognise it.
    if (!this.over) this.end(this.judged < this.asked ? "interrupted" : "timeout");
  }
}
