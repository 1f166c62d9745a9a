// A shared notes app: three users, two roles, one database, no server code.
// Start a pod (cargo run --release -- dev), then: npm install && node notes.mjs URL ADMIN PASSWORD
import { setTimeout as sleep } from 'node:timers/promises';
import PouchDB from 'pouchdb';
import memory from 'pouchdb-adapter-memory';

PouchDB.plugin(memory);
const [url = 'http://127.0.0.1:5984', admin = 'admin', password] = process.argv.slice(2);
const app = `shared-${Date.now()}`;

// ---- the operator, once: an app and its users ----------------------------------------------------
const authorization = 'Basic ' + Buffer.from(`${admin}:${password}`).toString('base64');
const put = async (path, doc) => {
  const answer = await fetch(`${url}/${path}`, { method: 'PUT', headers: { authorization, 'content-type': 'application/json' }, body: JSON.stringify(doc) });
  if (!answer.ok) throw new Error(`${path}: ${await answer.text()}`);
};
const user = (name, roles) => put(`_users/org.couchdb.user:${app}-${name}`, { type: 'user', name: `${app}-${name}`, password: 'secret', roles });
await put(`${app}?access=true`);
await user('alice', ['author', 'editor']);
await user('bob', ['editor']);
await user('carol', ['author']);

// ---- the app, on each user's device: a local database that syncs both ways, live -------------------
function device(name) {
  const local = new PouchDB(name, { adapter: 'memory' });
  const remote = new PouchDB(`${url}/${app}--me`, { auth: { username: `${app}-${name}`, password: 'secret' }, skip_setup: true });
  return Object.assign(local, { syncing: local.sync(remote, { live: true, retry: true }) });
}
const [alice, bob, carol] = ['alice', 'bob', 'carol'].map(device);

/** Waits until a device shows this text for a note; undefined stands for a note that isn't there. */
async function shows(local, id, text) {
  while ((await local.get(id).catch(() => ({}))).text !== text) await sleep(50);
}

// A draft for editors: alice and bob have it, carol doesn't.
await alice.put({ _id: 'draft', text: 'Rings look after themselves', access: { read: ['role:editor'] } });
await shows(bob, 'draft', 'Rings look after themselves');
console.log('bob has the draft, carol has', (await carol.allDocs()).rows.length, 'notes');

// Bob publishes it to authors too, who may read but not write.
await bob.put({ ...(await bob.get('draft')), text: 'Published', access: { read: ['role:author', 'role:editor'], write: ['role:editor'] } });
await Promise.all([shows(alice, 'draft', 'Published'), shows(carol, 'draft', 'Published')]);
console.log('carol reads what bob published');

// Carol may not change it: her push is denied, and nobody sees it.
const denied = new Promise((resolve) => carol.syncing.once('denied', resolve));
await carol.put({ ...(await carol.get('draft')), text: 'Graffiti' });
console.log(`carol's change is ${(await denied).doc.name}, and alice still reads:`, (await alice.get('draft')).text);

// Alice takes it back: it goes from bob's and carol's devices.
await alice.put({ ...(await alice.get('draft')), text: 'Mine', access: { read: [`user:${app}-alice`] } });
await shows(bob, 'draft', undefined);
console.log("it is gone from bob's device, and alice keeps:", (await alice.get('draft')).text);
for (const local of [alice, bob, carol]) local.syncing.cancel();
