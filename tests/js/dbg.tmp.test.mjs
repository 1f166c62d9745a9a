// Writers at work while the programs of the pod are killed again and again.
//
// What must hold after each kill: every acknowledged write is there; each document is in exactly the partial database of its
// readers; every feed, read from the start or followed over all kills, gives the same as the lists do.
// SEED=N repeats a run's choices (not its timing), CRASH_ROUNDS=N makes it longer.
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { Pod } from './lib/pod.mjs';
import { Random } from './lib/random.mjs';
import { signature } from './lib/signature.mjs';
import { sleep, until } from './lib/wait.mjs';

const SEED = Number(process.env.SEED) || (Date.now() % 1_000_000_007);
const ROUNDS = Number(process.env.CRASH_ROUNDS) || 10;
const WRITERS = 6, DOCS_EACH = 30, APP = 'notes', READERS = ['ann', 'bob', 'cat'];
/** Readers of a document, and where they put it. Every user of READERS is in some. */
const SETS = [['user:ann'], ['user:bob'], ['user:ann', 'user:bob'], ['role:staff'], ['role:staff', 'user:cat'], ['users'], []];
/** The order in which programs are killed; the rest is rean. */
const VICTIMS = ['rean', 'proxy', 'rean', 'adea', 'rean', 'rean', 'proxy', 'rean'];

let pod, random;
before(async () => {
  console.log(`SEED=${SEED}`);
  random = new Random(SEED);
  pod = await Pod.start();
  await pod.makeUser('ann');
  await pod.makeUser('bob', ['staff']);
  await pod.makeUser('cat', ['staff']);
  for (let w = 0; w < WRITERS; w++) await pod.makeUser(`writer${w}`);
  await pod.makeApp(APP);
});
after(() => pod?.stop());

/**
 * What one document may be like: the last acknowledged state, and those that were sent since without an answer.
 * A state is {tag, set, deleted}: the tag is in the document's text.
 */
class Expected {
  constructor(id) { this.id = id; this.acked = null; this.open = []; this.rev = undefined; this.turn = 0; }
}

/** One connection that writes documents of its own. */
class Writer {
  constructor(number, seed) {
    this.random = new Random(seed);
    this.user = `writer${number}`;
    this.docs = Array.from({ length: DOCS_EACH }, (_, n) => new Expected(`w${number}-${n}`));
    this.acked = 0;
    this.lost = 0;
  }

  next(expected) {
    expected.turn++;
    const state = { tag: `${expected.id}/${expected.turn}`, set: this.random.below(SETS.length), deleted: !!expected.rev && !expected.acked?.deleted && this.random.below(8) === 0 };
    if (state.deleted) state.set = null;
    const doc = state.deleted ? { _id: expected.id, _rev: expected.rev, _deleted: true }
      : { _id: expected.id, _rev: expected.rev, text: state.tag, fill: 'x'.repeat(this.random.below(2000)), access: { read: [...SETS[state.set], `user:${this.user}`] } };
    return { state, doc };
  }

  /** Writes until told to stop. */
  async run(round) {
    while (!round.stop) {
      const picked = [...new Set(Array.from({ length: this.random.below(4) === 0 ? 12 : 1 }, () => this.random.pick(this.docs)))];
      // What hangs in the air has to be looked up before it is written over.
      const todo = picked.filter((expected) => expected.open.length === 0);
      if (!todo.length) { await sleep(5); continue; }
      const edits = todo.map((expected) => ({ expected, ...this.next(expected) }));
      for (const { expected, state } of edits) expected.open.push(state);
      let rows = null;
      try {
        const path = this.random.below(2) ? `/${APP}--me/_bulk_docs` : `/${APP}/_bulk_docs`;
        const answer = await pod.send('POST', path, { as: this.user, body: { docs: edits.map((edit) => edit.doc) }, timeout: 30_000 });
        if (answer.status === 201) rows = answer.json;
        else if (answer.status < 500) round.faults.push(`${answer.status} ${answer.text}`);
      } catch { /* no answer: it may be written or not */ }
      if (!rows) { this.lost += edits.length; await sleep(20); continue; }
      rows.forEach((row, n) => {
        const { expected, state } = edits[n];
        if (row.error) { round.faults.push(`${row.id}: ${row.error} ${row.reason}`); return; }
        Object.assign(expected, { acked: state, open: [], rev: row.rev });
        this.acked++;
      });
    }
  }
}

/** All of a list, page by page; so that a page's limits are used too. */
async function list(db, as) {
  const rows = new Map();
  for (let start = ''; ;) {
    const page = (await pod.ok('GET', `/${db}/_all_docs?include_docs=true&limit=101${start}`, { as })).rows;
    for (const row of page) rows.set(row.id, row);
    if (page.length < 101) return rows;
    start = `&startkey=${encodeURIComponent(JSON.stringify(page.at(-1).id))}`;
  }
}

/** Follows a feed from a place on, and keeps what it tells. */
class Follower {
  constructor(db, as) { Object.assign(this, { db, as, since: '0', docs: new Map() }); }

  /** Gives the number of rows that were new. */
  async catchUp() {
    for (let rows = 0, pages = 0; ; pages++) {
      assert.ok(pages < 1000, `the feed of ${this.db} for ${this.as} comes to an end`);
      const page = await pod.ok('GET', `/${this.db}/_changes?limit=50&since=${encodeURIComponent(this.since)}`, { as: this.as });
      for (const row of page.results) {
        if (row.deleted) this.docs.delete(row.id);
        else this.docs.set(row.id, row.changes[0].rev);
      }
      rows += page.results.length;
      this.since = page.last_seq;
      if (!page.results.length) return rows;
    }
  }
}

const revsOf = (rows) => Object.fromEntries([...rows].map(([id, row]) => [id, row.value.rev]));
const plain = (entries) => Object.fromEntries([...entries].sort(([a], [b]) => (a < b ? -1 : 1)));

/** Compares what is there with what was acknowledged; gives the number of acknowledged writes that were looked at. */
async function checkWrites(writers) {
  const all = await list(APP, 'admin');
  let seen = 0;
  for (const writer of writers) {
    for (const expected of writer.docs) {
      const doc = all.get(expected.id)?.doc;
      const possible = [expected.acked, ...expected.open];
      const is = possible.findLast((state) => (state === null || state.deleted ? doc === undefined : doc?.text === state.tag));
      assert.notEqual(is, undefined, `${expected.id} is ${doc?.text ?? 'not there'}, acknowledged was ${JSON.stringify(expected.acked)}, without answer ${JSON.stringify(expected.open)}`);
      const known = is === expected.acked;
      if (doc && known && doc._rev !== expected.rev) {
        // The pod may have given it a successor with the same content, but the acknowledged revision is below that.
        const { start, ids } = (await pod.get(APP, expected.id, 'admin', '?revs=true'))._revisions;
        assert.ok(ids.some((hash, n) => `${start - n}-${hash}` === expected.rev), `${expected.id} has the acknowledged revision`);
      }
      // A writer who knows goes on from what was acknowledged; who doesn't, from what is there.
      Object.assign(expected, { acked: is, open: [], rev: is?.deleted ? undefined : doc?._rev });
      if (is) seen++;
    }
  }
  return seen;
}

/** Each document is in the partial database of its readers and in no other, and every feed tells the same as its list. */
async function checkPlaces(writers, followers) {
  const { partials } = await pod.ok('GET', `/${APP}/_access`);
  const names = new Set(partials.map((part) => part.db));
  for (const writer of writers) for (const set of SETS) names.add(`${APP}--${signature([...set, `user:${writer.user}`])}`);
  for (const name of names) {
    const known = followers.some((follower) => follower.db === name);
    if (!known && (await pod.send('GET', `/${name}`)).status === 200) followers.push(new Follower(name, 'admin'));
  }
  // Each from where it was before the kill. A feed that is read for the first time may bring a document that had moved a
  // successor with the same content, so again until there is nothing new.
  for (let turn = 0, rows = 1; rows; turn++) {
    assert.ok(turn < 10, 'the feeds come to rest');
    rows = 0;
    for (const follower of followers) rows += await follower.catchUp();
  }
  const all = await list(APP, 'admin');
  const where = new Map();
  for (const { db: name, as, docs } of followers.filter((follower) => follower.as === 'admin')) {
    const asked = await pod.send('GET', `/${name}`, { as });
    const rows = await list(name, as);
    assert.equal(asked.json.doc_count, rows.size, `the count of ${name}`);
    for (const [id, row] of rows) {
      assert.ok(!where.has(id), `${id} is in ${where.get(id)} and in ${name}`);
      where.set(id, name);
      assert.equal(row.value.rev, all.get(id)?.value.rev, `${id} in ${name} is of the revision that the app has`);
    }
    assert.deepEqual(plain(docs), plain(Object.entries(revsOf(rows))), `the feed of ${name}`);
  }
  for (const [id, row] of all) assert.equal(where.get(id), `${APP}--${signature(row.doc.access.read)}`, `where ${id} is`);
  assert.equal(where.size, all.size);
  const info = await pod.ok('GET', `/${APP}`);
  assert.equal(info.doc_count, all.size, 'the count of the app');
  const whole = await pod.ok('GET', `/${APP}/_changes?style=all_docs`);
  assert.equal(new Set(whole.results.map((row) => row.id)).size, whole.results.length, 'a document has one row');
  for (const row of whole.results) assert.equal(row.changes.length, 1, `${row.id} has no conflicts`);
  for (const follower of followers.filter(({ as }) => as !== 'admin')) {
    const docs = follower.docs;
    const rows = await list(follower.db, follower.as);
    for (const [id, rev] of docs) assert.equal(rev, rows.get(id)?.value.rev, `${follower.as} follows ${id}`);
    assert.equal(docs.size, rows.size, `${follower.as} follows all`);
    const may = new Set([`user:${follower.as}`, 'users', ...(follower.as === 'ann' ? [] : ['role:staff'])]);
    const readable = [...all.values()].filter((row) => row.doc.access.read.some((entry) => may.has(entry)));
    assert.equal(docs.size, readable.length, `${follower.as} reads what is theirs`);
  }
  return all.size;
}

test(`nothing acknowledged is lost and nothing is out of place over ${ROUNDS} kills`, { timeout: 600_000 }, async (t) => {
  const writers = Array.from({ length: WRITERS }, (_, n) => new Writer(n, SEED + n + 1));
  const followers = READERS.map((user) => new Follower(`${APP}--me`, user));
  for (let n = 0; n < ROUNDS; n++) {
    const round = { stop: false, faults: [] };
    const working = writers.map((writer) => writer.run(round));
    const target = writers.reduce((sum, writer) => sum + writer.acked, 0) + 60 + random.below(200);
    await until(() => writers.reduce((sum, writer) => sum + writer.acked, 0) >= target, 'writes to be acknowledged', 60_000);
    const victim = VICTIMS[n % VICTIMS.length];
    const pid = pod.kill(victim);
    await until(() => pod.pid(victim) && pod.pid(victim) !== pid, `another ${victim}`, 60_000);
    // Some of the load goes on over the restart.
    await pod.up();
    await sleep(random.below(300));
    round.stop = true;
    await Promise.all(working);
    await pod.up();
    assert.deepEqual(round.faults, [], `round ${n}, after killing ${victim}`);
    const seen = await checkWrites(writers);
    const docs = await checkPlaces(writers, followers); await checkWrites(writers);
    t.diagnostic(`round ${n}: killed ${victim}; ${seen} documents looked at, ${docs} live`);
  }
  const acked = writers.reduce((sum, writer) => sum + writer.acked, 0);
  t.diagnostic(`${acked} writes acknowledged, ${writers.reduce((sum, writer) => sum + writer.lost, 0)} without answer; SEED=${SEED}`);
  // And over a clean stop and start.
  await pod.restart();
  await checkWrites(writers);
  await checkPlaces(writers, followers);
});
