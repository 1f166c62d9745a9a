// Watches that nobody reads what they may no longer read, from the moment on when a pod says that it has seen to that.
import { APP, AFTER, BEFORE } from './writers.mjs';
import { signature } from './signature.mjs';
import { sleep } from './wait.mjs';

const FROM = signature(BEFORE), TO = signature(AFTER);
const TIMEOUT_MS = 4_000;

export class Revocations {
  constructor(pods, random) {
    Object.assign(this, { pods, random, all: new Map(), done: [], reads: 0, leaks: [], numbers: new Map(), since: pods.map(() => '0') });
  }

  /** A document that ann could read and may not any more: {id, secret, shown}, the last being the revision that she could read. */
  add(revocation) { this.all.set(revocation.id, { ...revocation, on: new Set() }); }

  /** Asks the pods what they have carried out. */
  async watch(round) {
    while (!round.stop) {
      await Promise.all(this.pods.map((pod, n) => this.#ask(pod, n).catch(() => { /* it is away */ })));
      await sleep(300);
    }
  }

  async #ask(pod, n) {
    const changes = await pod.ok('GET', `/_ring/_changes?include_docs=true&since=${this.since[n]}`, { timeout: TIMEOUT_MS });
    for (const { id, doc } of changes.results) {
      const number = /^instruction:(.*)\.(\d+)$/.exec(id);
      if (!number) continue;
      for (const move of doc?.moves ?? []) {
        if (move.db === APP && move.from === FROM && move.to === TO) this.numbers.set(move.id, { epoch: number[1], number: Number(number[2]) });
      }
    }
    this.since[n] = changes.last_seq;
    const me = (await pod.ok('GET', '/', { timeout: TIMEOUT_MS })).adea.pod;
    const status = await pod.ok('GET', `/_ring/pod:${me}`, { timeout: TIMEOUT_MS });
    for (const revocation of this.all.values()) {
      const given = this.numbers.get(revocation.id);
      if (!given || revocation.on.has(n)) continue;
      if (carriedOut(status, given.epoch) >= given.number) {
        revocation.on.add(n);
        this.done.push({ revocation, n });
      }
    }
  }

  /** Reads as ann where it is said to be done. */
  async read(round) {
    while (!round.stop) {
      const { done, random } = this;
      if (!done.length) { await sleep(50); continue; }
      // Half of them of late, where a mistake would show.
      const { revocation, n } = random.below(2) ? random.pick(done) : done[Math.max(0, done.length - 1 - random.below(30))];
      await this.probe(revocation, n, random.below(WAYS.length));
      await sleep(10);
    }
  }

  /** One read as ann; what it shows of the secret is a leak. */
  async probe(revocation, n, way) {
    const pod = this.pods[n];
    let answer;
    const [method, path, body] = WAYS[way](revocation);
    try { answer = await pod.send(method, path, { as: 'ann', body, timeout: TIMEOUT_MS }); } catch { return false; }
    if (answer.status >= 500) return false;
    this.reads++;
    if (answer.text.includes(revocation.secret)) this.leaks.push(`${method} ${path} at ${pod.base}: ${answer.status} ${answer.text.slice(0, 300)}`);
    return true;
  }
}

/** Up to which number of an epoch a pod has carried out all instructions, by its status. */
function carriedOut(status, epoch) {
  return Number(String(status.carried_out_in?.[epoch] ?? 0).split('.').pop());
}

/** Ways to read a document. */
const q = (value) => encodeURIComponent(JSON.stringify(value));
export const WAYS = [
  ({ id }) => ['GET', `/${APP}--me/${id}`],
  ({ id, shown }) => ['GET', `/${APP}--me/${id}?rev=${shown}`],
  ({ id }) => ['GET', `/${APP}--me/${id}?open_revs=all&revs=true`],
  ({ id, shown }) => ['POST', `/${APP}--me/_bulk_get`, { docs: [{ id }, { id, rev: shown }] }],
  ({ id }) => ['GET', `/${APP}--me/_all_docs?include_docs=true&keys=${q([id])}`],
  ({ id }) => ['GET', `/${APP}--me/_changes?include_docs=true&filter=_doc_ids&doc_ids=${q([id])}`],
  ({ id, shown }) => ['GET', `/${APP}--${FROM}/${id}?rev=${shown}`],
  ({ id }) => ['GET', `/${APP}--${FROM}/_all_docs?include_docs=true&keys=${q([id])}`],
];
