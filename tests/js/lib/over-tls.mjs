// A client that speaks TLS to a pod and trusts the ring's authority, which node learns at its start alone
// (NODE_EXTRA_CA_CERTS): so it is a process of its own. Says what came of it as one line of JSON.
//   node over-tls.mjs URL NAME PASSWORD
import PouchDB from 'pouchdb';
import memory from 'pouchdb-adapter-memory';
import WebSocket from 'ws';
import { Feeds } from '../../../proxy/web/feeds.mjs';
import { until } from './wait.mjs';

PouchDB.plugin(memory);
const [base, username, password] = process.argv.slice(2);
const remote = (options) => new PouchDB(`${base}/notes--me`, { auth: { username, password }, skip_setup: true, ...options });
const has = (db, id) => until(() => db.get(id).catch(() => null), `${id} in ${db.name}`, 20_000);

const feeds = new Feeds(base, { session: { name: username, password }, WebSocket });
// One by ordinary live feeds, one by the connection for many.
const one = new PouchDB('one', { adapter: 'memory' }), two = new PouchDB('two', { adapter: 'memory' });
const lives = [one.sync(remote(), { live: true, retry: true }), two.sync(remote({ fetch: feeds.fetch }), { live: true, retry: true })];
const denied = [];
for (const live of lives) { live.catch(() => {}); live.on('denied', (row) => denied.push(row)); }

const access = { read: [`user:${username}`] };
// Ids are the whole app's.
const id = (name) => `${name} of ${username}`;
await one.put({ _id: id('first'), access, text: 'é'.repeat(100_000) });
const { text } = await has(two, id('first'));
await two.put({ _id: id('second'), access });
await has(one, id('second'));
// And once more, when everything has been quiet.
await one.put({ _id: id('later'), access });
await has(two, id('later'));
for (const live of lives) live.cancel();
feeds.close();
console.log(JSON.stringify({ long: text.length, denied: denied.length }));
process.exit(0);
