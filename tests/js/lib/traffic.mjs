// Clients that write through any pod and try again when a pod is away: what they are told is done must be done, and nothing may
// go wrong that trying again doesn't cure.
import { sleep } from './wait.mjs';

/** A pod that is stopped answers late or never. */
const TIMEOUT_MS = 8_000;
/** How long a client tries before the user would see an error: longer than any hand-over, shorter than anyone's patience. */
const PATIENCE_MS = 30_000;
/** Answers that a client may try again after. All others are final. */
const PASSING = new Set([408, 429, 500, 502, 503, 504, 507]);

export class Traffic {
  /** `writers` clients, each with one write under way; `pause_ms` between a client's writes. */
  constructor(pods, random, { writers = 6, db = 'plain', pause_ms = 20 } = {}) {
    Object.assign(this, { pods, random, writers, db, pause_ms, written: new Map(), failed: [], retries: 0, longest_ms: 0, answers: {}, count: 0, round: Traffic.rounds = (Traffic.rounds ?? 0) + 1 });
  }

  start() {
    this.stopping = false;
    this.running = Promise.all(Array.from({ length: this.writers }, (_, n) => this.#writer(n)));
    return this;
  }

  async stop() {
    this.stopping = true;
    await this.running;
    return this;
  }

  async #writer(number) {
    while (!this.stopping) {
      await this.#write(`t${this.round}-${number}-${this.count++}`);
      await sleep(this.pause_ms);
    }
  }

  /** Writes a document that nobody else writes, until a pod says that it is done. */
  async #write(id) {
    const began = Date.now();
    let last = 'no try';
    for (let tries = 0; Date.now() < began + PATIENCE_MS; tries++) {
      if (tries) { this.retries++; await sleep(100); }
      const pod = this.random.pick(this.pods);
      let answer;
      try {
        answer = await pod.send('PUT', `/${this.db}/${id}`, { body: { by: id }, timeout: TIMEOUT_MS });
      } catch (error) {
        last = `${pod.base}: ${error.message}`;
        this.#tally(error.code ?? 'broken');
        continue;
      }
      last = `${pod.base}: ${answer.status} ${answer.text.slice(0, 200)}`;
      if (tries || answer.status >= 300) this.#tally(`${answer.status} ${answer.json?.error ?? ''}`.trim());
      if (answer.status === 201 || answer.status === 202) return this.#done(id, began, answer.json.rev);
      // An earlier try may have been carried out although its answer was lost: the document is this client's own. A pod that
      // lags behind may not have it yet.
      if (answer.status === 409) {
        const there = await pod.send('GET', `/${this.db}/${id}`, { timeout: TIMEOUT_MS }).catch(() => null);
        if (there?.json?.by === id) return this.#done(id, began, there.json._rev);
        continue;
      }
      if (!PASSING.has(answer.status)) break;
    }
    this.failed.push(`${id} after ${Date.now() - began} ms: ${last}`);
  }

  #done(id, began, rev) {
    this.written.set(id, rev);
    this.longest_ms = Math.max(this.longest_ms, Date.now() - began);
  }

  #tally(what) { this.answers[what] = (this.answers[what] ?? 0) + 1; }

  /** Which acknowledged writes a pod doesn't have. */
  async missing(pod) {
    const { rows } = await pod.ok('GET', `/${this.db}/_all_docs`, { timeout: 60_000 });
    const there = new Map(rows.map((row) => [row.id, row.value.rev]));
    return [...this.written].filter(([id, rev]) => there.get(id) !== rev).map(([id]) => id);
  }

  toString() { return `${this.written.size} writes, ${this.retries} retries, the longest took ${this.longest_ms} ms; ${JSON.stringify(this.answers)}`; }
}
