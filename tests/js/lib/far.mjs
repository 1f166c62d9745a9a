// Another server that speaks CouchDB's API: pouchdb-server's, without its command line, in this process.
import express from 'express';
import expressPouchDB from 'express-pouchdb';
import PouchDB from 'pouchdb';
import memory from 'pouchdb-adapter-memory';

PouchDB.plugin(memory);
let count = 0;

export class Far {
  /** Starts one with databases of its own, in memory; `include` names further routes of express-pouchdb's. */
  static async start({ include = [] } = {}) {
    const far = new Far();
    const databases = PouchDB.defaults({ adapter: 'memory', prefix: `far-${process.pid}-${++count}-` });
    far.app = express().use(expressPouchDB(databases, { mode: 'minimumForPouchDB', overrideMode: { include } }));
    await far.appear();
    return far;
  }

  /** Listens, on the same port as before. */
  appear() {
    return new Promise((resolve, reject) => {
      this.server = this.app.listen(this.port ?? 0, '127.0.0.1', () => {
        this.port = this.server.address().port;
        this.base = `http://127.0.0.1:${this.port}`;
        resolve();
      }).on('error', reject);
    });
  }

  /** Goes away with all connections, and keeps its documents. */
  vanish() {
    return new Promise((resolve) => {
      this.server.close(resolve);
      this.server.closeAllConnections();
    });
  }

  async send(method, path, body, type = 'application/json') {
    const data = body === undefined || Buffer.isBuffer(body) ? body : JSON.stringify(body);
    const answer = await fetch(this.base + path, { method, body: data, headers: data === undefined ? {} : { 'content-type': type } });
    const raw = Buffer.from(await answer.arrayBuffer());
    let json;
    try { json = JSON.parse(raw.toString()); } catch { /* it need not be JSON */ }
    return { status: answer.status, raw, json };
  }
}
