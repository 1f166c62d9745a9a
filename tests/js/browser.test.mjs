// A real browser: an app's own page, served by the pod, with PouchDB and the reference client for many feeds.
import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { cpSync, existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { after, before, test } from 'node:test';
import { promisify } from 'node:util';
import puppeteer from 'puppeteer-core';
import { read } from './lib/clients.mjs';
import { PROGRAM, Pod } from './lib/pod.mjs';
import { until } from './lib/wait.mjs';

const CHROMIUM = process.env.CHROMIUM || ['/usr/bin/chromium', '/usr/bin/chromium-browser', '/usr/bin/google-chrome'].find(existsSync);
/** A browser's connections to one server, over HTTP/1.1. */
const MOST_CONNECTIONS = 6;
const DATABASES = 50, APPS = DATABASES / 2;
let pod, browser, work, apps;

/** What the page does. It runs in the browser. */
const PAGE = `<!doctype html><meta charset="utf-8"><title>notes</title><link rel="icon" href="data:,">
<script src="pouchdb.min.js"></script>
<script type="module">
import { Feeds } from '/_web/feeds.mjs';
const copies = {};
Object.assign(window, {
  Feeds, copies,
  async logIn(name, password) {
    const answer = await fetch('/_session', { method: 'POST', headers: { 'content-type': 'application/json' }, body: JSON.stringify({ name, password }) });
    return (await answer.json()).name;
  },
  /** Syncs these databases live, in both directions if they can be written to. */
  live(databases, { feeds } = {}) {
    for (const db of databases) {
      const local = new PouchDB(db), remote = new PouchDB(location.origin + '/' + db, { skip_setup: true, ...(feeds && { fetch: feeds.fetch }) });
      const options = { live: true, retry: true, back_off_function: () => 250 };
      const sync = db.endsWith('--me') ? local.sync(remote, options) : local.replicate.from(remote, options);
      const copy = copies[db] = { local, sync, denied: [] };
      sync.on('denied', (error) => copy.denied.push(error));
      sync.catch(() => {});
    }
  },
  async have(id) {
    const found = await Promise.all(Object.values(copies).map(({ local }) => local.get(id).then(() => 1, () => 0)));
    return found.reduce((sum, one) => sum + one, 0);
  },
});
window.ready = true;
</script>`;

before(async () => {
  assert.ok(CHROMIUM, 'no Chromium is installed here: apt-get install chromium');
  pod = await Pod.start({ args: ['--couch-cookie'] });
  await pod.makeUser('ann');
  apps = Array.from({ length: APPS }, (_, n) => `app${n}`);
  await Promise.all(apps.map((db) => pod.makeApp(db)));
  await Promise.all(apps.map((db) => pod.put(db, 'first', { access: read('ann') })));
  work = mkdtempSync(join(tmpdir(), 'adea-browser-'));
  const pouch = dirname(createRequire(import.meta.url).resolve('pouchdb/package.json'));
  const folder = join(work, 'page');
  cpSync(join(pouch, 'dist', 'pouchdb.min.js'), join(folder, 'pouchdb.min.js'));
  writeFileSync(join(folder, 'index.html'), PAGE);
  await promisify(execFile)(PROGRAM, ['app', 'deploy', folder, '--app', apps[0], '--version', 'v1', '--data', pod.data, '--json']);
  // Root has no sandbox of a browser's, and a container little shared memory.
  const args = ['--no-sandbox', '--disable-dev-shm-usage', '--disable-gpu', '--disable-background-networking', '--disable-background-timer-throttling'];
  browser = await puppeteer.launch({ executablePath: CHROMIUM, headless: true, args, userDataDir: join(work, 'profile') });
});
after(async () => {
  await browser?.close();
  await pod?.stop();
  if (work) rmSync(work, { recursive: true, force: true, maxRetries: 5 });
});

/** A page of a visitor of its own, and what it has open: `sockets` and `requests`, by their ids. */
async function open() {
  const visitor = await browser.createBrowserContext();
  const page = await visitor.newPage();
  const seen = { page, sockets: new Map(), requests: new Map(), network: await page.createCDPSession(), close: () => visitor.close() };
  page.on('pageerror', (error) => console.error('the page:', error));
  const { network } = seen;
  network.on('Network.webSocketCreated', ({ requestId, url }) => seen.sockets.set(requestId, url));
  network.on('Network.webSocketClosed', ({ requestId }) => seen.sockets.delete(requestId));
  network.on('Network.requestWillBeSent', ({ requestId, request }) => seen.requests.set(requestId, request.url));
  for (const end of ['Finished', 'Failed']) network.on(`Network.loading${end}`, ({ requestId }) => seen.requests.delete(requestId));
  await network.send('Network.enable');
  await page.goto(`${pod.base}/${apps[0]}/_app/`);
  await page.waitForFunction('window.ready');
  const { name, password } = pod.login('ann');
  assert.equal(await page.evaluate((...who) => window.logIn(...who), name, password), 'ann');
  return seen;
}

const have = (page, id) => page.evaluate((id) => window.have(id), id);
const metric = async (name) => Number(new RegExp(`^adea_proxy_${name} (\\d+)$`, 'm').exec((await pod.send('GET', '/_metrics', { agent: false })).text)[1]);

async function databases() {
  const all = await Promise.all(apps.map((db) => pod.ok('GET', `/${db}/_access`, { as: 'ann' })));
  return all.flatMap(({ personal, partials }) => [personal, partials[0].db]);
}

for (const transport of ['websocket', 'events']) {
  test(`fifty live databases of a page over one connection: ${transport}`, async () => {
    const seen = await open(), { page } = seen;
    // The cookie is what the page has of the log-in; its programs can't even read it.
    assert.equal(await page.evaluate(() => document.cookie), '');
    const names = await databases();
    assert.equal(new Set(names).size, DATABASES);
    const before = await metric('feeds');
    await page.evaluate((names, transport) => {
      window.feeds = new window.Feeds(location.origin, { transport });
      window.live(names, { feeds: window.feeds });
    }, names, transport);
    await until(async () => await have(page, 'first') === DATABASES, 'the first documents', 30_000);
    await until(() => page.evaluate((most) => window.feeds.size === most, DATABASES), 'fifty subscriptions', 20_000);
    // Nothing is open now but the one connection.
    const openNow = () => [...seen.sockets.values(), ...seen.requests.values()];
    await until(() => { if (openNow().length !== 1) throw new Error(openNow().join(" ")); return true; }, "one connection", 20_000);
    assert.match(openNow()[0], transport === 'websocket' ? /^ws:.*\/_feeds$/ : /^http:.*\/_feeds$/);
    assert.equal(await metric('feeds') - before, 1);
    const id = `second-${transport}`, started = Date.now();
    await Promise.all(apps.map((db) => pod.put(db, id, { access: read('ann') })));
    await until(async () => await have(page, id) === DATABASES, 'a write to each', 15_000);
    console.log(`# ${transport}: ${DATABASES} databases had a write to each ${Date.now() - started} ms after`);
    // What the page writes goes the other way, over requests that are not in each other's way.
    await page.evaluate((id, db) => window.copies[db].local.put({ _id: id, access: { read: ['user:ann'] } }), `own-${transport}`, `${apps[3]}--me`);
    await until(async () => (await pod.send('GET', `/${apps[3]}/own-${transport}`)).status === 200, 'what the page wrote', 15_000);
    await seen.close();
    await until(async () => await metric('feeds') === before, 'its end', 10_000);
  });
}

for (const transport of ['websocket', 'events']) test(`offline and back, and what was taken away meanwhile goes from the page: ${transport}`, async () => {
  const seen = await open(), { page } = seen, db = apps[transport.length];
  const rev = await pod.put(db, 'taken', { access: read('ann'), text: 'secret' });
  await page.evaluate((db, transport) => {
    window.feeds = new window.Feeds(location.origin, { transport });
    window.live([`${db}--me`], { feeds: window.feeds });
  }, db, transport);
  const get = (id) => page.evaluate((name, id) => window.copies[name].local.get(id).then((doc) => doc._rev, (error) => error.status), `${db}--me`, id);
  await until(async () => await get('taken') === rev, 'the document', 15_000);
  // And its checkpoint: a client that has a document and no note of it begins anew, as one that never had it.
  await until(() => page.evaluate((name) => window.copies[name].sync.pull.state === 'pending', `${db}--me`), 'the checkpoint', 15_000);
  await page.setOfflineMode(true);
  assert.equal(await page.evaluate(() => navigator.onLine), false);
  await assert.rejects(page.evaluate(() => fetch('/_up').then((answer) => answer.status)));
  await pod.put(db, 'taken', { _rev: rev, access: { read: ['user:admin'] }, text: 'secret' });
  await pod.put(db, 'meanwhile', { access: read('ann') });
  await page.evaluate((name) => window.copies[name].local.put({ _id: 'offline', access: { read: ['user:ann'] } }), `${db}--me`);
  assert.equal((await pod.send('GET', `/${db}/offline`)).status, 404);
  await page.setOfflineMode(false);
  await until(async () => await get('meanwhile') !== 404, 'what was written meanwhile', 20_000);
  await until(async () => await get('taken') === 404, 'the document to go', 20_000);
  await until(async () => (await pod.send('GET', `/${db}/offline`)).status === 200, 'what the page wrote offline', 20_000);
  // The page's own database shows it nowhere, and what the page syncs back does not kill the document.
  assert.deepEqual(await page.evaluate(async (name) => (await window.copies[name].local.allDocs()).rows.filter(({ id }) => id === 'taken'), `${db}--me`), []);
  assert.equal((await pod.get(db, 'taken')).text, 'secret');
  await seen.close();
});

test('a log-out ends the feeds of the page', async () => {
  const seen = await open(), { page } = seen;
  await page.evaluate((db) => {
    window.ends = [];
    window.rows = [];
    window.feeds = new window.Feeds(location.origin);
    window.feeds.subscribe(db, { onEnd: (error) => window.ends.push(error.status) }, (row) => window.rows.push(row.id));
  }, `${apps[1]}--me`);
  await page.waitForFunction('window.rows.includes("first")');
  await page.evaluate(() => fetch('/_session', { method: 'DELETE' }));
  await page.waitForFunction('window.ends.length', { timeout: 15_000 });
  assert.deepEqual(await page.evaluate('window.ends'), [401]);
  await seen.close();
});

test('where no WebSocket gets through, the page finds the event stream', async () => {
  const seen = await open(), { page } = seen;
  await page.evaluate((db) => {
    // As in a network whose proxy knows no such thing.
    class Blocked extends WebSocket { constructor(url, protocols) { super(url.replace('/_feeds', '/_up'), protocols); } }
    window.rows = [];
    window.feeds = new window.Feeds(location.origin, { WebSocket: Blocked });
    window.feeds.subscribe(db, {}, (row) => window.rows.push(row.id));
  }, `${apps[2]}--me`);
  await page.waitForFunction('window.rows.includes("first")', { timeout: 15_000 });
  assert.equal(await page.evaluate('window.feeds.transport'), 'events');
  await pod.put(apps[2], 'late', { access: read('ann') });
  await page.waitForFunction('window.rows.includes("late")', { timeout: 10_000 });
  await seen.close();
});

test('a plain EventSource with the cookie is told what it has asked for in its URL', async () => {
  const seen = await open(), { page } = seen;
  await page.evaluate((db) => {
    const messages = [{ op: 'subscribe', id: 'a', db, since: 'now' }];
    window.heard = [];
    window.source = new EventSource('/_feeds?messages=' + encodeURIComponent(JSON.stringify(messages)));
    window.source.onmessage = ({ data }) => window.heard.push(JSON.parse(data));
  }, `${apps[2]}--me`);
  await page.waitForFunction('window.heard.some(({ op }) => op === "caught_up")', { timeout: 10_000 });
  assert.equal(await page.evaluate('window.heard[0].user'), 'ann');
  await pod.put(apps[2], 'later', { access: read('ann') });
  await page.waitForFunction('window.heard.at(-1).results?.[0].id === "later"', { timeout: 10_000 });
  await page.evaluate(() => window.source.close());
  await seen.close();
});

test('without it, seven live databases take all the connections that a page has', async () => {
  const seen = await open(), { page } = seen;
  const names = apps.slice(0, MOST_CONNECTIONS + 1).map((db) => `${db}--me`), before = await metric('feeds');
  await page.evaluate((names) => window.live(names), names);
  await until(async () => await metric('feeds') - before === MOST_CONNECTIONS, 'six long polls', 30_000);
  const answer = () => page.evaluate(() => fetch('/_session', { signal: AbortSignal.timeout(2_000) }).then(({ status }) => status, ({ name }) => name));
  await until(async () => await answer() === 'TimeoutError', 'the page to get no answer any more', 20_000);
  // The same page, the same databases: with one connection there is room for everything else.
  await page.evaluate(() => { for (const { sync } of Object.values(window.copies)) sync.cancel(); });
  await until(async () => await answer() === 200, 'the connections to be free', 20_000);
  await page.evaluate((names) => window.live(names, { feeds: new window.Feeds(location.origin) }), names);
  await until(async () => await metric('feeds') - before === 1, 'one connection', 20_000);
  assert.equal(await answer(), 200);
  await seen.close();
});
