// The admin's page: shows admin/data and admin/images, and excludes people and images.

const EVERY = 10_000; // milliseconds between two looks at the study
const NONE = "–";
const byId = (id) => document.getElementById(id);
const view = { order: "rounds", page: 0, pages: 1, shown: "" };

class Refusal extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

async function send(path, options) {
  const answer = await fetch(path, options);
  if (answer.ok) return answer;
  const told = await answer.json().catch(() => ({}));
  throw new Refusal(answer.status, told.error ?? `The server answered ${answer.status}.`);
}

// The server's JSON, null where it has none; body is sent if there is one.
async function ask(path, body) {
  const answer = await send(path, body === undefined ? {} : {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body),
  });
  return answer.status === 204 ? null : answer.json();
}

// An element with attributes, of which null and false are left out, and children: elements or texts.
function make(name, attributes, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== null && value !== false) element.setAttribute(key, value);
  }
  element.append(...children);
  return element;
}

const number = (value) => value.toLocaleString("en");
const percent = (value) => (value == null ? NONE : `${Math.round(100 * value)} %`);
const correlation = (value) => (value == null ? NONE : value.toFixed(2));
const small = (text) => make("small", {}, text);

function showFigures({ images, outcomes, left_out: leftOut, ...data }) {
  const finished = Object.values(outcomes).reduce((sum, value) => sum + value, 0);
  const share = images.wanted ? images.had / images.wanted : 0;
  byId("progress-text").textContent = `${number(images.painted)} of ${number(images.played)} images are painted, ` +
    `${number(images.had)} of ${number(images.wanted)} rounds are there.`;
  byId("progress").setAttribute("aria-valuenow", Math.round(100 * share));
  byId("progress").firstElementChild.style.width = `${100 * share}%`;
  const figures = [
    [number(data.counted), "rounds that count"],
    [percent(data.recognised), "of them recognised"],
    [percent(finished ? (outcomes.skip ?? 0) / finished : null), "of all skipped"],
    [correlation(data.ceiling), `agreement of people, on ${number(data.shared)} images that several painted`],
    [number(data.people.length), "people"],
    [number(images.excluded), "images excluded"],
  ];
  byId("figures").replaceChildren(...figures.map(([value, title]) =>
    make("div", {}, make("dt", {}, title), make("dd", {}, value))));
  const reasons = Object.entries(leftOut).map(([reason, count]) => `${reason} (${number(count)})`);
  byId("left-out").textContent = reasons.length ? `Rounds that do not count: ${reasons.join("; ")}.` : "";
}

function personRow(person) {
  const doubts = person.doubts ?? [];
  const cell = (...children) => make("td", { class: "number" }, ...children);
  return make("tr", { class: person.excluded ? "out" : null },
    make("th", { scope: "row" }, person.name, make("br", {}), small(person.participant)),
    make("td", { class: doubts.length || person.excluded ? "doubts" : null }, ...(person.excluded ? [`excluded: ${person.excluded}`] :
      doubts.length ? doubts.map((doubt) => make("span", { class: "doubt" }, doubt)) : [NONE])),
    cell(number(person.rounds ?? 0), ...(person.skips ? [make("br", {}), small(`${number(person.skips)} skipped`)] : [])),
    cell(percent(person.recognised)),
    cell(person.bubbles == null ? NONE : number(person.bubbles)),
    cell(percent(person.catch), person.catch == null ? "" : small(` (${percent(person.by_chance)})`)),
    cell(correlation(person.agreement), person.agreement == null ? "" : small(` (${number(person.compared)})`)),
    make("td", {}, decision(`admin/people/${encodeURIComponent(person.participant)}`, person.name, person.excluded, doubts.join("; "))));
}

function showPeople(people) {
  const rank = (person) => (person.excluded ? 2 : person.doubts?.length ? 0 : 1);
  byId("people-number").textContent = number(people.length);
  byId("people").replaceChildren(...[...people]
    .sort((a, b) => rank(a) - rank(b) || (b.rounds ?? 0) - (a.rounds ?? 0)).map(personRow));
}

function imageCard(image) {
  const facts = [`${number(image.people)} ${image.people === 1 ? "person" : "people"}, ${number(image.wanted)} wanted`];
  if (image.rounds) facts.push(`recognised ${percent(image.recognised)}`);
  if (image.agreement != null) facts.push(`agreement ${correlation(image.agreement)}`);
  return make("li", { class: image.excluded ? "out" : null },
    make("img", { src: `admin/images/${image.id}/map.png?rounds=${image.rounds}`, alt: `Map of ${image.path}`, loading: "lazy", width: image.width, height: image.height }),
    make("div", {}, make("strong", {}, image.label), small(image.path),
      make("p", {}, image.excluded ? `excluded: ${image.excluded}` : facts.join("\n")),
      decision(`admin/images/${image.id}`, image.path, image.excluded, "")));
}

function showImages({ total, page, images }) {
  view.pages = Math.max(1, Math.ceil(total / page));
  byId("images-number").textContent = number(total);
  byId("page").textContent = `${view.page + 1} of ${view.pages}`;
  byId("before").disabled = view.page === 0;
  byId("after").disabled = view.page + 1 >= view.pages;
  byId("images").replaceChildren(...images.map(imageCard));
}

// The button that excludes, after asking for the reason, or includes again.
function decision(path, name, excluded, suggested) {
  const button = make("button", { type: "button", "data-path": path }, excluded ? "Include" : "Exclude",
    make("span", { class: "unseen" }, ` ${name}`));
  button.addEventListener("click", async () => {
    const reason = excluded ? null : await askReason(name, suggested);
    if (reason !== "") await ask(path, { excluded: reason }).then(refresh, tell);
  });
  return button;
}

// The reason that is typed in; "" where the dialog is cancelled.
function askReason(name, suggested) {
  const dialog = byId("exclude");
  byId("exclude-title").textContent = `Exclude ${name}?`;
  byId("reason").value = suggested;
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue ? byId("reason").value.trim() : ""), { once: true });
  });
}

function tell(error, asked = true) {
  const isOut = error instanceof Refusal && error.status === 403;
  if (isOut) byId("study").hidden = true;
  byId("login").hidden = !isOut;
  byId("trouble").hidden = isOut && !asked;
  byId("trouble").textContent = error instanceof Refusal ? error.message : "The server does not answer.";
}

// Shows the study as it is now. What is the same stays as it is, and the button that has the focus keeps it.
async function refresh() {
  try {
    const [data, images] = await Promise.all([ask("admin/data"), ask(`admin/images?order=${view.order}&page=${view.page}`)]);
    byId("login").hidden = byId("trouble").hidden = true;
    byId("study").hidden = false;
    byId("when").textContent = `as of ${new Date().toLocaleTimeString("en-GB")}`;
    const shown = JSON.stringify([data, images]);
    if (shown === view.shown) return;
    view.shown = shown;
    const focused = document.activeElement?.dataset.path;
    showFigures(data);
    showPeople(data.people);
    showImages(images);
    if (focused) document.querySelector(`[data-path="${CSS.escape(focused)}"]`)?.focus();
  } catch (error) {
    tell(error, view.shown !== "");
  }
}

// Making the file takes a while, and may be refused: the button says so, and no broken file is saved.
async function download() {
  const button = byId("download");
  button.disabled = true;
  button.textContent = "Making the maps…";
  try {
    const file = await (await send("admin/maps.zip")).blob();
    const link = make("a", { href: URL.createObjectURL(file), download: "maps.zip" });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), EVERY);
  } catch (error) {
    tell(error);
  } finally {
    button.disabled = false;
    button.textContent = "Download the maps";
  }
}

function turn(pages) {
  view.page = Math.min(Math.max(0, view.page + pages), view.pages - 1);
  refresh();
}

const logIn = (token) => ask("admin/login", { token }).then(refresh, tell);

byId("login").addEventListener("submit", (event) => {
  event.preventDefault();
  logIn(byId("token").value.trim());
});
byId("order").addEventListener("change", (event) => {
  view.order = event.target.value;
  view.page = 0;
  refresh();
});
byId("download").addEventListener("click", download);
byId("before").addEventListener("click", () => turn(-1));
byId("after").addEventListener("click", () => turn(1));
setInterval(() => {
  if (!document.hidden && !byId("exclude").open && byId("login").hidden) refresh();
}, EVERY);

// The address that serve prints has the token behind #, which no server and no log sees.
const token = new URLSearchParams(location.hash.slice(1)).get("token");
if (token) {
  history.replaceState(null, "", location.pathname);
  logIn(token);
} else {
  refresh();
}
