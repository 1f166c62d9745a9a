// PouchDB as an app would use it.
import PouchDB from 'pouchdb';
import memory from 'pouchdb-adapter-memory';
import { until } from './wait.mjs';

PouchDB.plugin(memory);
let count = 0;

/** A client of one user: a local database and its server. */
export class Client {
  constructor(pod, user, db) {
    this.user = user;
    this.local = new PouchDB(`client-${process.pid}-${++count}`, { adapter: 'memory' });
    const { name, password } = pod.login(user);
    this.remote = new PouchDB(`${pod.base}/${db}`, { auth: { username: name, password }, skip_setup: true });
    this.denied = [];
    this.errors = [];
  }

  /** Goes online: syncs both ways, live. */
  online() {
    this.live = this.local.sync(this.remote, { live: true, retry: true })
      .on('denied', (denied) => this.denied.push(denied))
      .on('error', (error) => this.errors.push(error));
    this.live.catch(() => { /* it is in `errors` */ });
    return this;
  }

  async offline() {
    const live = this.live;
    if (!live) return;
    this.live = null;
    let done = false;
    for (const event of ['complete', 'error']) live.on(event, () => { done = true; });
    live.cancel();
    await until(() => done, `${this.user}'s sync to stop`, 20_000);
  }

  /** One sync both ways; gives PouchDB's report. */
  async sync() {
    let report = null;
    const once = this.local.sync(this.remote).on('denied', (denied) => this.denied.push(denied)).on('complete', (done) => { report = done; });
    let failed = null;
    once.catch((error) => { failed = Object.assign(error, { fatal: true }); });
    return until(() => { if (failed) throw failed; return report; }, `${this.user}'s sync to be complete`, 30_000);
  }

  /** The live document, or null. */
  async get(id, options) {
    try { return await this.local.get(id, options); } catch (error) { if (error.status === 404) return null; throw error; }
  }

  /** Changes a document as an app does: reads it, changes it, writes it. */
  async edit(id, change) {
    return this.local.put({ ...(await this.local.get(id)), ...change });
  }

  /** Waits until the local document is what `check` wants; null stands for a document that is gone. */
  shows(id, check, what = `${this.user}'s ${id}`) {
    return until(async () => { const doc = await this.get(id); return check(doc) ? (doc ?? true) : false; }, what, 20_000);
  }

  gone(id) { return this.shows(id, (doc) => doc === null, `${id} to go from ${this.user}`); }
  has(id, text) { return this.shows(id, (doc) => doc && (text === undefined || doc.text === text), `${this.user} to have ${id} ${text ?? ''}`); }

  /** Everything that is live here, as {id: rev}. */
  async all() {
    const { rows } = await this.local.allDocs();
    return Object.fromEntries(rows.map((row) => [row.id, row.value.rev]));
  }

  async close() {
    await this.offline();
    await this.local.destroy();
    await this.remote.close();
  }
}

export const read = (...names) => ({ read: names.map(entry) });
export const entry = (name) => (name.includes(':') || name === 'users' || name === 'anyone' ? name : `user:${name}`);
