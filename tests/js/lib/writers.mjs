// Clients of a ring that is being broken: what they have written, and what they were told about it.
import { signature } from './signature.mjs';
import { sleep } from './wait.mjs';

export const APP = 'notes';
/** Where documents are put. Whoever writes them may always read them, else they could not go on writing. */
export const SETS = [['user:ann'], ['user:bob'], ['user:ann', 'user:bob'], ['role:staff'], ['users'], []].map((set) => [...set, 'role:writers']);
/** Readers of a document that ann is going to lose, before and after. */
export const BEFORE = ['user:ann', 'role:movers'], AFTER = ['role:movers'];
/** All partial databases that there can be. */
export const PARTS = [...SETS, BEFORE, AFTER].map((set) => `${APP}--${signature(set)}`);

/** Answers that promise that nothing was written. */
const REFUSALS = new Set(['no_master', 'not_master', 'conflict']);
/** A write waits up to 5 s for a master. A pod that is stopped answers later or never. */
const TIMEOUT_MS = 7_000;
/** Writes that one client has under way at a time: most wait for something while pods are stopped or cut off. */
const LANES = 4;
/** The history of a document is kept up to 1,000 revisions; all of it is looked at in the end. */
const MAX_TURNS = 300;

/** A document, and what is known of each of its writes; each has a tag of its own in the text. */
export class Doc {
  constructor(id) { Object.assign(this, { id, turn: 0, rev: undefined, look: false, deleted: false, acked: new Map(), refused: new Set(), unknown: new Set() }); }
}

/** What all clients were told, in numbers. */
export class Tally {
  constructor() { Object.assign(this, { acked: 0, acked_on_two: 0, accepted: 0, no_master: 0, conflict: 0, away: 0, unknown: 0, faults: [] }); }

  fault(text) { if (this.faults.length < 20) this.faults.push(text); }
}

/** Sends one write; gives `acked`, `refused` or `unknown`, and keeps the account. */
export async function write(doc, pod, as, body, tally, w = 1) {
  const tag = `${doc.id}/${++doc.turn}`;
  let answer;
  try {
    const query = w > 1 ? `?w=${w}` : '';
    answer = await pod.send('PUT', `/${APP}/${doc.id}${query}`, { as, body: { ...body, _id: doc.id, _rev: doc.rev, tag }, timeout: TIMEOUT_MS });
  } catch (error) {
    // Nobody has listened, so nobody has heard. Any other break leaves it open whether the write was done.
    if (error.code === 'ECONNREFUSED') {
      doc.refused.add(tag);
      tally.away++;
      return 'refused';
    }
  }
  const status = answer?.status, error = answer?.json?.error;
  if ([200, 201, 202].includes(status) && answer.json?.ok) {
    doc.acked.set(answer.json.rev, tag);
    Object.assign(doc, { rev: answer.json.rev, deleted: !!body._deleted });
    tally.acked++;
    if (status === 202) tally.accepted++;
    else if (w > 1) tally.acked_on_two++;
    return 'acked';
  }
  doc.look = true;
  if (REFUSALS.has(error)) {
    doc.refused.add(tag);
    if (error === 'conflict') tally.conflict++;
    else tally.no_master++;
    return 'refused';
  }
  if (status !== undefined && status < 500) tally.fault(`PUT ${doc.id} at ${pod.base}: ${status} ${answer.text}`);
  doc.unknown.add(tag);
  tally.unknown++;
  return 'unknown';
}

/** A client that writes documents of its own through any pod, and goes on from what that pod shows when it doesn't know. */
export class Writer {
  constructor(number, random, pods, tally) {
    Object.assign(this, { number, random, pods, tally, user: `writer${number}`, docs: [], all: [] });
    for (let n = 0; n < 7 * LANES; n++) this.#add(n);
  }

  #add(slot) {
    const doc = new Doc(`w${this.number}-${this.all.length}`);
    this.docs[slot] = doc;
    this.all.push(doc);
  }

  run(round) { return Promise.all(Array.from({ length: LANES }, (_, lane) => this.#lane(round, lane))); }

  /** Each lane has documents of its own. */
  async #lane(round, lane) {
    const { random } = this;
    while (!round.stop) {
      const slot = random.below(this.docs.length / LANES) * LANES + lane, pod = random.pick(this.pods);
      const doc = this.docs[slot];
      if (doc.turn >= MAX_TURNS) { this.#add(slot); continue; }
      const body = doc.rev && !doc.deleted && random.below(12) === 0 ? { _deleted: true }
        : { access: { read: random.pick(SETS) }, fill: 'x'.repeat(random.below(1500)) };
      if (doc.look && !(await this.#look(doc, pod))) { await sleep(50); continue; }
      const told = await write(doc, pod, this.user, body, this.tally, random.below(10) < 3 ? 2 : 1);
      await sleep(told === 'acked' ? 20 + random.below(40) : 100);
    }
  }

  /** Takes what this pod shows for what is there. In a split that makes branches: both sides go on. */
  async #look(doc, pod) {
    try {
      const answer = await pod.send('GET', `/${APP}/${doc.id}`, { timeout: 4_000 });
      if (answer.status === 404) Object.assign(doc, { rev: undefined, deleted: true, look: false });
      else if (answer.status === 200) Object.assign(doc, { rev: answer.json._rev, deleted: false, look: false });
      return !doc.look;
    } catch { return false; }
  }
}

/**
 * A client that shows documents to ann and then takes them away from her, once each, without ever making a branch: a document
 * of which it isn't known whether a write was done is left alone. So when the ring says that the taking away is carried out
 * on a pod, ann must get nothing of it there.
 */
export class Mover {
  constructor(number, random, pods, tally, revocations) {
    Object.assign(this, { number, random, pods, tally, revocations, user: `mover${number}`, all: [] });
  }

  async run(round) {
    const { random } = this;
    while (!round.stop) {
      const doc = new Doc(`m${this.number}-${this.all.length}`);
      this.all.push(doc);
      const secret = `the secret of ${doc.id}.`;
      const put = async (read) => (await write(doc, random.pick(this.pods), this.user, { access: { read }, secret }, this.tally)) === 'acked';
      if (await put(BEFORE)) {
        const shown = doc.rev;
        await sleep(random.below(400));
        if (await this.#untilKnown(round, () => put(AFTER))) this.revocations.add({ id: doc.id, secret, shown });
      }
      await sleep(100 + random.below(200));
    }
  }

  /** A refused write can be sent again, as it was not done: nothing stands in its way but its own absence. */
  async #untilKnown(round, put) {
    for (;;) {
      if (await put()) return true;
      const doc = this.all.at(-1);
      if (doc.unknown.size || round.stop) return false;
      await sleep(200);
    }
  }
}
