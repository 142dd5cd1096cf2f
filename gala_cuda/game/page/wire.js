/** The server's routes. */

/** The server could not be reached. */
export class NoConnection extends Error {}

/** The server's no, with its reason. */
export class Refusal extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

const address = (path) => new URL(`api/${path}`, document.baseURI);

function send(method, path, body, options) {
  const headers = body === undefined ? {} : { "Content-Type": "application/json" };
  return fetch(address(path), { method, headers, body, cache: "no-store", ...options }).catch((error) => {
    throw error instanceof TypeError ? new NoConnection(error.message) : error;
  });
}

/** Why the server said no: its own words, or a proxy's. */
export async function reason(response) {
  const text = await response.text();
  try {
    return JSON.parse(text).error ?? text;
  } catch (error) {
    if (error instanceof SyntaxError) return text || response.statusText;
    throw error;
  }
}

async function answered(response) {
  if (response.ok) return response;
  throw new Refusal(response.status, await reason(response));
}

/** -> the server's JSON, or null where it has no more to say (202, 204). */
async function json(method, path, body) {
  const response = await answered(await send(method, path, body && JSON.stringify(body)));
  return response.status === 200 ? response.json() : null;
}

export const study = () => json("GET", "study");
export function join() {
  const recruit = new URLSearchParams(location.search).get("recruit"); // a recruiting service's number of the player
  return json("POST", "join", recruit ? { consent: true, recruit } : { consent: true });
}
export const board = () => json("GET", "board");
export const forget = () => json("DELETE", "me");
export const newRound = (untimed) => json("POST", "rounds", untimed ? { untimed } : {});
export const guess = (id, points) => json("POST", `rounds/${id}/guess`, { points });

export async function image(id) {
  const response = await answered(await send("GET", `rounds/${id}/image`));
  return createImageBitmap(await response.blob());
}

/** Send the finished round, even from a page that is being closed. -> the response, or null without a connection. */
export function finish(id, body) {
  return send("PUT", `rounds/${id}`, body, { keepalive: true }).catch((error) => {
    if (error instanceof NoConnection) return null;
    throw error;
  });
}
