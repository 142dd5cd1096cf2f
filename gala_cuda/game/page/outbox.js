/** Finished rounds wait here, in the browser's own database, until the server has answered for them. */

const STORE = "rounds";
const WAIT_MS = [2000, 5000, 15000, 60000]; // between tries while something waits

const settled = (request) =>
  new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });

export class Outbox {
  /** send(id, body) -> the server's Response, or null without a connection.
   *  changed({waiting, refused}): how many rounds wait; the response by which the server will never take one. */
  constructor(send, changed) {
    this.send = send;
    this.changed = changed;
    this.tries = 0;
  }

  async open() {
    const request = indexedDB.open("clickme-outbox", 1);
    request.onupgradeneeded = () => request.result.createObjectStore(STORE, { keyPath: "id" });
    this.database = await settled(request);
    addEventListener("online", () => this.flush());
  }

  #store(mode = "readwrite") {
    return this.database.transaction(STORE, mode, { durability: "strict" }).objectStore(STORE);
  }

  /** Keep a finished round and send it. -> the server's answer, or null while it has none. */
  async put(id, result) {
    const record = { id, body: JSON.stringify(result) };
    // Both at once: a page that is closing gets no second turn.
    const written = settled(this.#store().put(record));
    const sent = this.send(record.id, record.body);
    await written;
    return this.#conclude(record, await sent);
  }

  /** Send whatever waits. */
  flush() {
    this.flushing ??= this.#flush().finally(() => (this.flushing = undefined));
    return this.flushing;
  }

  async #flush() {
    for (const record of await settled(this.#store("readonly").getAll())) {
      await this.#conclude(record, await this.send(record.id, record.body));
    }
  }

  /** Leave nothing behind. */
  async clear() {
    await settled(this.#store().clear());
    await this.#report();
  }

  async #conclude(record, response) {
    const delivered = response?.ok ?? false;
    const refused = response !== null && isFinal(response.status);
    if (delivered || refused) await settled(this.#store().delete(record.id));
    await this.#report(refused ? response : undefined);
    return delivered ? response.json() : null;
  }

  async #report(refused) {
    const waiting = await settled(this.#store("readonly").count());
    clearTimeout(this.timer);
    if (waiting === 0) this.tries = 0;
    else this.timer = setTimeout(() => this.flush(), WAIT_MS[Math.min(this.tries++, WAIT_MS.length - 1)]);
    this.changed({ waiting, refused });
  }
}

/** A refusal that another try cannot change; without a session (401) or too early (408, 425, 429) it can. */
function isFinal(status) {
  return status >= 400 && status < 500 && ![401, 408, 425, 429].includes(status);
}
