/** What is shown on the page. Words from the server get there through textContent alone. */

import { MOST_BUBBLES } from "./brush.js";
import { playExample } from "./practice.js";
import { Scene, drawView } from "./scene.js";

export const $ = (id) => document.getElementById(id);

const still = matchMedia("(prefers-reduced-motion: reduce)");
const TITLES = {
  recognised: (label) => `“${label}”: your partner got it!`,
  timeout: (label) => `Your partner did not get “${label}”`,
  interrupted: () => "That round was interrupted",
};
let example; // the controller that stops it

/** Show one part of the page, with its heading in focus. */
export function show(id) {
  for (const section of document.querySelectorAll("main > section")) section.hidden = section.id !== id;
  example?.abort();
  if (id === "welcome") startExample();
  $("untimed").disabled = id === "round";
  scrollTo(0, 0);
  document.querySelector(`#${id} h1`).focus({ preventScroll: true });
}

/** One line at the foot of the window until the next one; "" for none. */
export function notice(text) {
  $("notice").hidden = !text;
  $("notice").textContent = text;
}

/** For those who listen to the page. */
function say(text) {
  $("say").textContent = text;
}

/** A message in place of a picture, with one thing to do: act, by the name of action; nothing without one. */
export function tell(title, text, action = "", act = null) {
  $("message-title").textContent = title;
  $("message-text").textContent = text;
  $("again").hidden = !action;
  $("again").textContent = action;
  $("again").onclick = act;
  show("message");
}

export function showTotal(total) {
  $("total").textContent = Math.round(total);
}

/** Who plays: {participant, name, total}; {} before anybody does. */
export function showPlayer({ participant, name, total }) {
  $("consent-form").hidden = Boolean(participant);
  for (const id of ["back", "purse", "who", "open-leave"]) $(id).hidden = !participant;
  $("code").textContent = participant ?? "";
  $("name").textContent = name ?? "";
  showTotal(total ?? 0);
}

function startExample() {
  example = new AbortController();
  const told = (name, recognised) => {
    $("example-says").textContent = name === null ? "" : `${name}${recognised ? "!" : "?"}`;
    $("example-says").classList.toggle("right", Boolean(recognised));
  };
  playExample($("example"), { still: still.matches, signal: example.signal, say: told });
}

const item = (...texts) => {
  const element = document.createElement("li");
  for (const text of texts) element.append(Object.assign(document.createElement("span"), { textContent: text }));
  return element;
};

/** The page before the first press; badge: what is special about the round, "" for nothing. */
export function showRound(game, untimed, badge) {
  $("badge").hidden = !badge;
  $("badge").textContent = badge;
  $("word").textContent = game.label;
  $("canvas").setAttribute("aria-label", `A picture of: ${game.label}. Arrow keys move the brush, the space bar starts.`);
  $("hint").textContent = "Press to start";
  $("thinking").textContent = "It sees nothing yet.";
  $("names").replaceChildren();
  $("skip").disabled = false;
  showClock(game, untimed, 0, 0);
  show("round");
}

/** The points still to be had, as they fall; without a clock the bubbles still to be painted. */
export function showClock({ rules }, untimed, elapsed, bubbles) {
  const left = untimed ? 1 - bubbles / MOST_BUBBLES : Math.max(0, 1 - elapsed / rules.limit_ms) ** 3;
  $("bar").style.transform = `scaleX(${left})`;
  $("worth").textContent = untimed ? `${MOST_BUBBLES - bubbles} left` : Math.ceil(100 * left);
}

export function showGuess({ names, recognised }, label) {
  $("names").replaceChildren(...names.map((name) => item(name)));
  if (recognised) $("names").children[Math.max(names.indexOf(label), 0)].className = "right";
  $("thinking").textContent = "";
  if (!recognised) say(`Your partner guesses: ${names[0]}`);
}

/** How a round ended: what Round.play gave, beside what the partner saw. */
export function showResult({ label, width, height, rules }, image, { outcome, points, answer }) {
  $("verdict").textContent = TITLES[outcome](label);
  $("detail").textContent = {
    recognised: () => `It took ${answer.n} bubbles and ${(points[answer.n - 1][2] / 1000).toFixed(1)} seconds.`,
    timeout: () => "Look at what it saw. The next one goes better!",
    interrupted: () => "You left the page, or your partner could not be reached. The round is kept, but brings no points.",
  }[outcome]();
  show("result");
  const painted = new Scene($("painted"), image, width, height, rules.bubble);
  painted.draw({ points, elapsed: Infinity, cursor: null });
  painted.close();
  drawView($("view"), image, width, height, rules.bubble, answer ? points.slice(0, answer.n) : points);
  const score = Math.round(answer?.score ?? 0); // practice, and a picture seen before, bring none
  $("score").hidden = !score;
  if (score) countUp(score);
  say(`${$("verdict").textContent} ${score ? `${score} points` : ""}`);
}

function countUp(score) {
  $("won-unit").textContent = score === 1 ? "point" : "points";
  const began = performance.now();
  const frame = (now) => {
    const share = still.matches ? 1 : Math.min(1, Math.max(0, now - began) / 600);
    $("won").textContent = Math.round(score * (1 - (1 - share) ** 3));
    if (share < 1) requestAnimationFrame(frame);
  };
  frame(began);
}

export function showBoard(ranks) {
  $("ranks").replaceChildren(...ranks.map(({ name, score }) => item(name, Math.round(score))));
  for (const rank of $("ranks").children) {
    if (rank.firstChild.textContent === $("name").textContent) rank.setAttribute("aria-current", "true");
  }
  $("board-empty").textContent = ranks.length ? "" : "Nobody has scored yet. Be the first!";
  $("board").showModal();
}
