/** The game from the first visit to the last picture. */

import { Outbox } from "./outbox.js";
import { PRACTICE, drawBoat, pretendPartner } from "./practice.js";
import { Round } from "./round.js";
import { Scene } from "./scene.js";
import { $, notice, show, showBoard, showClock, showGuess, showPlayer, showResult, showRound, showTotal, tell } from "./screens.js";
import * as wire from "./wire.js";

const outbox = new Outbox(wire.finish, async ({ waiting, refused }) => {
  const rounds = waiting === 1 ? "1 finished round is" : `${waiting} finished rounds are`;
  if (refused) notice(`The server did not take a round: ${await wire.reason(refused)}`);
  else if (waiting) notice(`No connection. ${rounds} kept on this device and sent as soon as the server answers.`);
  else notice("");
});
let scene;
let running; // the round that is being played

/** Do it. Where the server says no or cannot be reached: a message, and the same again on demand. */
async function attempt(act) {
  try {
    await act();
  } catch (error) {
    if (error instanceof wire.NoConnection) offerAgain(act);
    else if (!(error instanceof wire.Refusal)) throw error;
    else if (error.status === 401) await attempt(begin); // who it was is forgotten
    else tell("That did not work", error.message, "Try again", () => attempt(act));
  }
}

/** Again by the button, or when the browser says that it is online. */
function offerAgain(act) {
  const waiting = new AbortController();
  const again = () => {
    waiting.abort();
    attempt(act);
  };
  addEventListener("online", again, { signal: waiting.signal });
  tell("No connection", "The server cannot be reached. Finished rounds are kept on this device.", "Try again", again);
}

async function begin() {
  await meet();
  show("welcome");
}

/** What the study is, and who plays. */
async function meet() {
  const { title, consent, ...player } = await wire.study();
  $("study-title").textContent = title;
  $("consent").textContent = consent;
  showPlayer(player);
}

async function join() {
  await wire.join();
  await meet();
  await practise();
}

/** A round on the page -> what Round.play gives. */
async function play(game, image, ask, untimed, badge) {
  showRound(game, untimed, badge);
  scene?.close();
  scene = new Scene($("canvas"), image, game.width, game.height, game.rules.bubble);
  $("canvas").focus({ preventScroll: true });
  $("canvas").scrollIntoView({ block: "nearest" });
  running = new Round($("canvas"), scene, game, ask, {
    started: () => {
      $("hint").textContent = "";
      $("thinking").textContent = "Looking…";
    },
    moved: (elapsed, bubbles) => showClock(game, untimed, elapsed, bubbles),
    answered: (answer) => showGuess(answer, game.label),
    waited: () => ($("hint").textContent = "Your partner has one last look…"),
  });
  return running.play().finally(() => ($("skip").disabled = true)); // until the next picture has come
}

async function practise() {
  const image = drawBoat();
  const partner = pretendPartner();
  const result = await play(PRACTICE, image, async (points) => partner(points), false, "Practice");
  if (result.outcome === "skip") return playNext();
  showResult(PRACTICE, image, result);
  offerNext("Now with the real partner");
}

async function playNext() {
  const untimed = $("untimed").checked;
  const game = await wire.newRound(untimed);
  if (!game) return tell("You have seen every picture", "Thank you! Your rounds are with the study.");
  const image = await wire.image(game.round);
  const result = await play(game, image, (points) => guess(game.round, points), untimed, game.practice ? "Practice" : "");
  const { outcome, points, pointer } = result;
  const finished = outbox.put(game.round, { outcome, points, device: device(pointer) });
  if (outcome !== "skip") {
    showResult(game, image, result);
    offerNext("Next picture");
  }
  const answer = await finished;
  if (answer) showTotal(answer.total);
  if (outcome === "skip") await playNext();
}

/** What it was played on; a round that was skipped before the first press, on what it would have been. */
function device(pointer) {
  const usual = matchMedia("(pointer: coarse)").matches ? "touch" : "mouse";
  return { pointer: pointer ?? usual, ratio: devicePixelRatio, width: innerWidth, height: innerHeight };
}

function offerNext(action) {
  $("next").textContent = action;
  $("next").focus({ preventScroll: true });
}

/** The partner's answer; null without one: the next guess has all the bubbles again. */
async function guess(id, points) {
  try {
    return await wire.guess(id, points);
  } catch (error) {
    if (error instanceof wire.NoConnection) $("thinking").textContent = "No connection. Paint on: the round is kept.";
    else if (!(error instanceof wire.Refusal)) throw error;
    return null;
  }
}

async function leave() {
  await wire.forget();
  await outbox.clear();
  localStorage.clear();
  showPlayer({});
  tell("Everything about you is deleted", "Thank you for your time. You can close the page.", "Play again as someone new", () => attempt(begin));
}

const onClick = (id, act) => $(id).addEventListener("click", () => attempt(act));
onClick("play", playNext);
onClick("practise", practise);
onClick("next", playNext);
onClick("open-board", async () => showBoard(await wire.board()));
$("skip").addEventListener("click", () => running.end("skip"));
$("open-leave").addEventListener("click", () => $("leave").showModal());
$("leave").addEventListener("close", () => $("leave").returnValue === "forget" && attempt(leave));
$("consent-form").addEventListener("submit", (event) => {
  event.preventDefault();
  attempt(join);
});
$("untimed").checked = localStorage.getItem("untimed") === "yes";
$("untimed").addEventListener("change", () => localStorage.setItem("untimed", $("untimed").checked ? "yes" : "no"));

try {
  await outbox.open();
  attempt(begin);
  await outbox.flush();
} catch (error) {
  if (!(error instanceof DOMException)) throw error;
  tell("This browser keeps nothing", `Finished rounds need its storage (IndexedDB): ${error.message}`);
}
