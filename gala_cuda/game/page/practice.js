/** A picture that the page draws itself, with a make-believe partner: the example at the top, and the round for practice. */

import { Brush, SIXTEENTHS } from "./brush.js";
import { Scene, revealed } from "./scene.js";

export const PRACTICE = {
  label: "sailing boat",
  width: 288,
  height: 216,
  rules: { bubble: 14, step: 7, interval_ms: 50, limit_ms: 7000, every: 10 },
};
const SAILS = ["M150 28 L150 142 L222 142 Q206 74 150 28 Z", "M142 44 L142 142 L92 142 Q122 104 142 44 Z"];
const HULL = "M72 152 L232 152 Q224 184 196 184 L108 184 Q82 182 72 152 Z";
// What it says, from the share of the boat that it sees on.
const SAYS = [
  [0, ["cloud", "wall", "snow", "lake", "curtain"]],
  [0.06, ["tent", "kite", "pyramid", "cloud", "curtain"]],
  [0.16, ["kite", "sailing boat", "tent", "lighthouse", "pier"]],
  [0.24, ["sailing boat", "kite", "lighthouse", "surfboard", "pier"]],
];
// Of the example: seconds since it began, and where the pointer is by then.
const PATH = [[1, 148, 40], [1.6, 150, 130], [2.3, 196, 134], [2.9, 160, 60], [3.6, 100, 138], [4.4, 110, 168], [5.4, 210, 168]];
const EXAMPLE_S = 8;

const inks = (context, drawings) => {
  for (const [style, path] of drawings) {
    context.fillStyle = style;
    context.fill(new Path2D(path));
  }
};

/** The picture, three pixels for each of its own, so that it is sharp on any screen. */
export function drawBoat() {
  const { width, height } = PRACTICE;
  const canvas = Object.assign(document.createElement("canvas"), { width: 3 * width, height: 3 * height });
  const context = canvas.getContext("2d");
  context.scale(3, 3);
  const sky = context.createLinearGradient(0, 0, 0, 150);
  ["#5aa7e0", "#bfe3f4", "#fde9c8"].forEach((colour, at) => sky.addColorStop(at / 2, colour));
  context.fillStyle = sky;
  context.fillRect(0, 0, width, height);
  const sea = context.createLinearGradient(0, 140, 0, height);
  ["#3f9ab0", "#14506f"].forEach((colour, at) => sea.addColorStop(at, colour));
  inks(context, [
    ["#fff3c4", "M36 44 a20 20 0 1 0 40 0 a20 20 0 1 0 -40 0"],
    ["#ffffffb0", "M214 44 a12 12 0 0 1 22 -6 a15 15 0 0 1 28 6 a9 9 0 0 1 0 16 L212 60 a9 9 0 0 1 2 -16 Z"],
    ["#ffffff80", "M20 96 a9 9 0 0 1 16 -4 a11 11 0 0 1 20 4 a7 7 0 0 1 0 12 L20 108 a6 6 0 0 1 0 -12 Z"],
    ["#7d9c8a", "M0 152 L0 136 Q34 118 74 140 L96 152 Z"],
    [sea, "M0 148 L288 148 L288 216 L0 216 Z"],
    ["#5d3a24", "M144 20 L149 20 L149 154 L144 154 Z"],
    ["#fffaf0", SAILS[0]],
    ["#e4572e", SAILS[1]],
    ["#8a4b2a", HULL],
    ["#f4d9b0", "M72 152 L232 152 L229 160 L75 160 Z"],
    ["#d8432b", "M149 20 L172 26 L149 32 Z"],
  ]);
  context.lineWidth = 3;
  context.lineCap = "round";
  context.strokeStyle = "#ffffff60";
  context.stroke(new Path2D("M84 196 q12 -8 24 0 t24 0 t24 0 M14 172 q10 -7 20 0 t20 0 M236 204 q10 -7 20 0 t20 0 M250 166 q8 -5 16 0"));
  return canvas;
}

/** A partner for the boat: ask(points) answers as the server does, by how much of the boat the bubbles show. */
export function pretendPartner() {
  const { width, height, rules, label } = PRACTICE;
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  inks(context, [...SAILS, HULL].map((path) => ["#000", path]));
  const boat = context.getImageData(0, 0, width, height).data.filter((_, at) => at % 4 === 3).map((alpha) => alpha > 127);
  const all = boat.reduce((total, inside) => total + inside, 0);
  return (points) => {
    const shown = revealed(width, height, rules.bubble, points);
    const share = shown.reduce((total, seen, pixel) => total + (seen & boat[pixel]), 0) / all;
    const names = SAYS.findLast(([least]) => share >= least)[1];
    const score = 100 * (1 - points.at(-1)[2] / rules.limit_ms) ** 3;
    return { n: points.length, names, recognised: names[0] === label, score };
  };
}

/** Play the example over and over until the signal stops it; still: only its last picture.
 *  say(name, recognised) shows what the partner says, name null for nothing. */
export function playExample(canvas, { still, signal, say }) {
  const { width, height, rules } = PRACTICE;
  const scene = new Scene(canvas, drawBoat(), width, height, rules.bubble);
  const ask = pretendPartner();
  let brush, spoken, recognised;
  const at = (elapsed) => {
    if (!brush) {
      brush = new Brush(width, height, rules);
      [spoken, recognised] = [0, false];
      say(null);
    }
    if (elapsed >= 1000 * PATH[0][0] && !recognised) {
      brush[brush.started ? "move" : "press"](elapsed, ...along(elapsed / 1000));
    }
    while (!recognised && spoken + rules.every <= brush.points.length) {
      const answer = ask(brush.points.slice(0, (spoken += rules.every)));
      recognised = answer.recognised;
      say(answer.names[0], recognised);
    }
    scene.draw({ points: brush.points, elapsed: elapsed - brush.start, cursor: null });
  };
  if (still) {
    for (let elapsed = 0; elapsed < 1000 * EXAMPLE_S; elapsed += 20) at(elapsed);
    signal.addEventListener("abort", () => scene.close());
    return;
  }
  let began, last;
  const frame = (now) => {
    if (signal.aborted) return scene.close();
    began ??= now;
    const elapsed = (now - began) % (1000 * EXAMPLE_S);
    if (elapsed < last) brush = null;
    last = elapsed;
    at(elapsed);
    requestAnimationFrame(frame);
  };
  requestAnimationFrame(frame);
}

/** Where the example's pointer is, in sixteenths of a pixel. */
function along(seconds) {
  const next = PATH.findIndex(([time]) => time > seconds);
  const [[t0, x0, y0], [t1, x1, y1]] = next < 0 ? [PATH.at(-1), PATH.at(-1)] : [PATH[Math.max(next - 1, 0)], PATH[next]];
  const share = t1 > t0 ? (seconds - t0) / (t1 - t0) : 0;
  return [x0 + share * (x1 - x0), y0 + share * (y1 - y0)].map((place) => Math.round(place * SIXTEENTHS));
}
