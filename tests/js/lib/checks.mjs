// What must hold on each pod of a ring, whatever has happened.
import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { APP, PARTS } from './writers.mjs';
import { signature } from './signature.mjs';
import { sleep } from './wait.mjs';

const TIMEOUT_MS = 4_000;

/** All ids of a database with the winners' revisions; none if there is no such database. */
async function ids(pod, db) {
  const answer = await pod.send('GET', `/${db}/_all_docs`, { timeout: TIMEOUT_MS });
  if (answer.status === 404) return new Map();
  if (answer.status !== 200) throw new Error(`${db}: ${answer.status}`);
  return new Map(answer.json.rows.map((row) => [row.id, row.value.rev]));
}

/** Looks again and again whether a document is in two partial databases of one pod. */
export class Sampler {
  constructor(pods, random) { Object.assign(this, { pods, random, samples: 0, twice: [] }); }

  async run(round) {
    while (!round.stop) {
      const pod = this.random.pick(this.pods);
      try { await this.#sample(pod); } catch { /* it is away */ }
      await sleep(250);
    }
  }

  /**
   * All lists are read, and then once more. A document that is in a list both times with the same revision was there all the
   * time, so no list that was read in between may have it.
   */
  async #sample(pod) {
    const reads = [];
    for (let turn = 0; turn < 2; turn++) for (const db of PARTS) reads.push({ db, has: await ids(pod, db) });
    for (let n = 0; n < PARTS.length; n++) {
      const last = n + PARTS.length;
      for (const [id, rev] of reads[n].has) {
        if (reads[last].has.get(id) !== rev) continue;
        for (const { db, has } of reads.slice(n + 1, last)) {
          if (db !== PARTS[n] && has.has(id)) this.twice.push(`${id} is in ${PARTS[n]} at ${rev} and in ${db} at ${has.get(id)}, at ${pod.base}`);
        }
      }
    }
    this.samples++;
  }
}

/** The histories of all leaves of a document: [{leaf, deleted, revs}]. */
async function trees(pod, id) {
  const answer = await pod.send('GET', `/${APP}/${id}?open_revs=all&revs=true`, { timeout: 30_000 });
  if (answer.status === 404) return [];
  assert.equal(answer.status, 200, `${id} at ${pod.base}: ${answer.text}`);
  return answer.json.filter((row) => row.ok).map(({ ok }) => {
    const { start, ids: hashes } = ok._revisions;
    return { leaf: ok._rev, deleted: !!ok._deleted, revs: hashes.map((hash, n) => `${start - n}-${hash}`) };
  });
}

/** Every acknowledged write is in the tree on this pod. Gives {writes, conflicts}: the latter are ids with several live leaves. */
export async function checkWrites(pod, docs) {
  let writes = 0;
  const conflicts = [], missing = [], all = new Map();
  await inParallel(docs, 16, async (doc) => {
    const leaves = await trees(pod, doc.id);
    const there = new Set(leaves.flatMap((leaf) => leaf.revs));
    for (const [rev, tag] of doc.acked) {
      if (there.has(rev)) writes++;
      else missing.push(`${tag} as ${rev}`);
    }
    all.set(doc.id, there);
    if (leaves.filter((leaf) => !leaf.deleted).length > 1) conflicts.push(doc.id);
  });
  assert.deepEqual(missing.slice(0, 20), [], `acknowledged, and not at ${pod.base} (${missing.length} in all)`);
  return { writes, conflicts, all };
}

/** What was refused is nowhere in the trees, as far as the bodies of old revisions are kept. Gives how many were looked at. */
export async function checkRefused(pod, docs, trees) {
  const asked = [];
  for (const doc of docs) {
    if (!doc.refused.size) continue;
    for (const rev of trees.get(doc.id)) if (!doc.acked.has(rev)) asked.push({ id: doc.id, rev, doc });
  }
  const found = [];
  for (let n = 0; n < asked.length; n += 200) {
    const some = asked.slice(n, n + 200);
    const { results } = await pod.ok('POST', `/${APP}/_bulk_get`, { body: { docs: some.map(({ id, rev }) => ({ id, rev })) }, timeout: 30_000 });
    results.forEach((result, k) => {
      const tag = result.docs[0]?.ok?.tag;
      // What the pods write themselves when a document moves has its content.
      const known = new Set([...some[k].doc.acked.values(), ...some[k].doc.unknown]);
      if (tag && some[k].doc.refused.has(tag) && !known.has(tag)) found.push(`${tag} as ${some[k].rev}`);
    });
  }
  assert.deepEqual(found, [], 'refused, and there');
  return docs.reduce((sum, doc) => sum + doc.refused.size, 0);
}

/** Each live document is in the partial database of its readers, and in no other. Gives how many there are. */
export async function checkPlaces(pod) {
  const all = await pod.ok('GET', `/${APP}/_all_docs?include_docs=true`, { timeout: 60_000 });
  const { partials } = await pod.ok('GET', `/${APP}/_access`, { timeout: 30_000 });
  const where = new Map();
  for (const db of new Set([...PARTS, ...partials.map((part) => part.db)])) {
    for (const [id, rev] of await ids(pod, db)) {
      assert.ok(!where.has(id), `${id} is in ${where.get(id)?.db} and in ${db} at ${pod.base}`);
      where.set(id, { db, rev });
    }
  }
  for (const { id, doc } of all.rows) {
    const wanted = { db: `${APP}--${signature(doc.access.read)}`, rev: doc._rev };
    assert.deepEqual(where.get(id), wanted, `where ${id} is at ${pod.base}`);
    where.delete(id);
  }
  assert.deepEqual([...where.keys()], [], `in partial databases of ${pod.base}, and not in the app`);
  return all.rows.length;
}

/** Documents with several live leaves that no report of the ring names. */
export async function unreported(pod, ids) {
  const { rows } = await pod.ok('GET', '/_ring/_all_docs?include_docs=true&startkey=%22divergence:%22&endkey=%22divergence%3B%22', { timeout: 30_000 });
  const told = new Set(rows.filter((row) => row.doc.db === APP).map((row) => row.doc.id));
  return ids.filter((id) => !told.has(id));
}

/** A short name of what all histories of all documents are. */
export function digest(all) {
  const lines = [...all].map(([id, revs]) => `${id} ${[...revs].sort().join(' ')}`).sort();
  return createHash('sha256').update(lines.join('\n')).digest('hex').slice(0, 12);
}

async function inParallel(list, width, what) {
  const rest = [...list];
  await Promise.all(Array.from({ length: width }, async () => { while (rest.length) await what(rest.pop()); }));
}
