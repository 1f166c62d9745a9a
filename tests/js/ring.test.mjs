// A ring of three pods: whichever a client talks to, it is the same ring.
import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { Client, read } from './lib/clients.mjs';
import { Random } from './lib/random.mjs';
import { Revocations, WAYS } from './lib/revocations.mjs';
import { about, converged, Ring } from './lib/ring.mjs';
import { signature } from './lib/signature.mjs';
import { until } from './lib/wait.mjs';
import { AFTER, APP, BEFORE } from './lib/writers.mjs';

let ring, pods, master, followers;

before(async () => {
  ring = await Ring.start(3);
  ({ pods } = ring);
  await lookForMaster();
  for (const [name, roles] of [['ann', []], ['bob', []], ['cat', ['staff']], ['mover0', ['movers']]]) await pods[0].makeUser(name, roles);
  await pods[0].makeApp(APP);
  await converged(pods, ['_users', '_ring']);
});
after(() => ring?.stop());

async function lookForMaster(wanted) {
  master = await ring.agreed(wanted);
  followers = pods.filter((pod) => pod !== master);
}

/** Waits until a document is at every pod in this revision. */
const everywhere = (db, id, rev, as) => Promise.all(pods.map((pod) => until(async () => (await pod.get(db, id, as))._rev === rev, `${id} at ${pod.base}`)));

describe('who takes the writes', () => {
  test('each pod says it, also to those who are not logged in', async () => {
    const said = await Promise.all(pods.map(async (pod) => (await pod.ok('GET', '/', { as: null })).adea));
    assert.equal(new Set(said.map((one) => one.pod)).size, 3, 'each has a name of its own');
    assert.deepEqual(said.map((one) => one.role).sort(), ['follower', 'follower', 'master']);
    const { pod } = said[pods.indexOf(master)];
    for (const one of said) assert.deepEqual(one.master, { pod, url: master.base });
  });

  test('a new preference moves the mastership, and no write is refused meanwhile', { timeout: 120_000 }, async () => {
    const names = await Promise.all(pods.map(async (pod) => (await about(pod)).pod));
    const refused = [];
    let stop = false, written = 0;
    const writing = pods.map(async (pod, n) => {
      for (let turn = 0; !stop; turn++) {
        const answer = await pod.send('PUT', `/${APP}/moving-${n}-${turn}`, { body: { turn } });
        if (answer.status === 201) written++;
        else refused.push(`${answer.status} ${answer.text}`);
      }
    });
    let rev;
    try {
      for (const id of [...names, names[0]]) {
        const start = Date.now();
        ({ rev } = await pods[1].ok('PUT', '/_ring/config', { body: { _rev: rev, election: { prefer: [id] } } }));
        await lookForMaster({ id });
        console.log(`${id} took over after ${Date.now() - start} ms`);
      }
    } finally {
      stop = true;
      await Promise.all(writing);
      if (rev) await pods[1].ok('DELETE', `/_ring/config?rev=${rev}`);
      await lookForMaster();
    }
    assert.deepEqual(refused, []);
    assert.ok(written > 0);
  });

  test('a configuration that can\'t be is refused by the name of its member', async () => {
    const wrong = { 'election.prefer': { election: { prefer: 'pod-1' } }, 'election.settle_ms': { election: { settle_ms: 100_000 } }, 'gossip.phi': { gossip: { phi: 0 } }, 'write.w': { write: { w: 0 } }, peerings: { peerings: {} } };
    for (const pod of pods) {
      for (const [member, config] of Object.entries(wrong)) {
        const answer = await pod.send('PUT', '/_ring/config', { body: config });
        assert.equal(answer.status, 400, `${member}: ${answer.text}`);
        assert.ok(answer.text.includes(member), `${member} is not named in ${answer.text}`);
      }
    }
  });
});

describe('writes', () => {
  test('at each pod are read at every pod', async () => {
    for (const [n, pod] of pods.entries()) {
      const rev = await pod.put(APP, `from-${n}`, { text: 'from here' });
      await everywhere(APP, `from-${n}`, rev);
    }
  });

  test('at a follower are read there at once', async () => {
    for (const pod of followers) {
      let rev;
      for (let turn = 0; turn < 25; turn++) {
        rev = await pod.put(`${APP}--me`, `own-${pod.port}`, { _rev: rev, turn, access: read('ann') }, 'ann');
        assert.equal((await pod.get(`${APP}--me`, `own-${pod.port}`, 'ann')).turn, turn);
      }
      await pod.ok('DELETE', `/${APP}--me/own-${pod.port}?rev=${rev}`, { as: 'ann' });
      assert.equal((await pod.send('GET', `/${APP}--me/own-${pod.port}`, { as: 'ann' })).status, 404);
    }
  });

  test('with w are on that many pods when they are acknowledged', async () => {
    const count = async (id) => (await Promise.all(pods.map((pod) => pod.send('GET', `/${APP}/${id}`)))).filter((answer) => answer.status === 200).length;
    for (const [n, pod] of pods.entries()) {
      for (const w of [2, 3]) {
        for (let turn = 0; turn < 5; turn++) {
          const id = `w${w}-${n}-${turn}`;
          const answer = await pod.send('PUT', `/${APP}/${id}?w=${w}`, { body: {} });
          assert.equal(answer.status, 201, answer.text);
          assert.ok(await count(id) >= w, `${id} on ${w} pods`);
        }
      }
      const many = await pod.send('PUT', `/${APP}/many-${n}?w=4`, { body: {} });
      assert.equal(many.status, 202, many.text);
      for (const w of ['0', '101', 'two', '']) assert.equal((await pod.send('PUT', `/${APP}/wrong?w=${w}`, { body: {} })).status, 400, `w=${w}`);
    }
    await followers[0].makeApp('careful', { w: 3 });
    await until(async () => {
      const answer = await followers[0].send('PUT', `/careful/d${Date.now()}`, { body: {} });
      assert.equal(answer.headers['x-adea-w'], '3/3');
      return true;
    }, 'the app\'s w to count');
    const wrong = await pods[0].send('PUT', '/_ring/app:wrong', { body: { w: 'x' } });
    assert.equal(wrong.status, 400, wrong.text);
  });

  test('of many documents at a follower are answered for each, and arrive', async () => {
    const [pod] = followers;
    const docs = Array.from({ length: 600 }, (_, n) => ({ _id: `bulk-${n}`, n, fill: 'é'.repeat(500) }));
    const rows = await pod.ok('POST', `/${APP}/_bulk_docs`, { body: { docs }, status: 201 });
    assert.equal(rows.filter((row) => row.ok).length, 600);
    const again = await pod.ok('POST', `/${APP}/_bulk_docs`, { body: { docs: [{ _id: 'bulk-0', other: true }, { _id: 'bulk-new' }] }, status: 201 });
    assert.deepEqual(again.map((row) => row.error ?? 'ok'), ['conflict', 'ok']);
    assert.equal((await pod.ok('GET', `/${APP}/_all_docs?startkey="bulk-"&endkey="bulk-z"`)).rows.length, 601);
    await everywhere(APP, 'bulk-599', rows[599].rev);
  });

  test('of attachments go through a follower in both directions', async () => {
    const [pod] = followers, large = Buffer.alloc(5_000_000, 'large and not the same all over ');
    const { rev } = await pod.ok('PUT', `/${APP}/filed/large.bin`, { body: large, headers: { 'content-type': 'application/octet-stream' }, status: 201 });
    await everywhere(APP, 'filed', rev);
    for (const one of pods) {
      const answer = await one.send('GET', `/${APP}/filed/large.bin`);
      assert.ok(answer.raw.equals(large), `all of it is at ${one.base}`);
      const part = await one.send('GET', `/${APP}/filed/large.bin`, { headers: { range: 'bytes=100-199' } });
      assert.ok(part.raw.equals(large.subarray(100, 200)));
    }
  });

  test('an app that is made at one pod is used at all, and is gone from all', async () => {
    const app = 'fresh', me = `${app}--me`;
    await followers[0].makeApp(app);
    await until(async () => (await Promise.all(pods.map((pod) => pod.send('GET', `/${app}`)))).every((answer) => answer.status === 200), 'the app to be everywhere');
    for (const [n, pod] of pods.entries()) {
      const rev = await pod.put(me, `d${n}`, { n, access: read('ann', 'bob') }, 'ann');
      await everywhere(me, `d${n}`, rev, 'bob');
      await everywhere(`${app}--${signature(['user:ann', 'user:bob'])}`, `d${n}`, rev, 'bob');
    }
    await followers[1].ok('DELETE', `/${app}`);
    await until(async () => (await Promise.all(pods.map((pod) => pod.send('GET', `/${app}`)))).every((answer) => answer.status === 404), 'the app to be gone');
    await pods[0].makeApp(app);
    for (const pod of pods) {
      await until(async () => (await pod.send('GET', `/${app}`)).status === 200, 'the app to be there again');
      assert.deepEqual((await pod.ok('GET', `/${me}/_all_docs`, { as: 'bob' })).rows, [], 'nothing of the old one is back');
    }
  });
});

test('PouchDBs that sync with different pods see one another\'s changes', { timeout: 60_000 }, async () => {
  const ann = new Client(followers[0], 'ann', `${APP}--me`).online(), bob = new Client(followers[1], 'bob', `${APP}--me`).online();
  try {
    await ann.local.put({ _id: 'shared', text: 'one', access: read('ann', 'bob') });
    await bob.has('shared', 'one');
    await bob.edit('shared', { text: 'two' });
    await ann.has('shared', 'two');
    await ann.edit('shared', { text: 'mine', access: read('ann') });
    await bob.gone('shared');
    await ann.edit('shared', { text: 'ours', access: read('ann', 'bob') });
    await bob.has('shared', 'ours');
    assert.deepEqual([ann.denied, bob.denied, ann.errors, bob.errors], [[], [], [], []]);
  } finally {
    await Promise.all([ann.close(), bob.close()]);
  }
});

describe('who may read', () => {
  const SECRET = 'xyzzy-of-ann', me = `${APP}--me`;

  test('is the same on every pod', async () => {
    // An app in which nothing has moved: the first who reads a document that came back gets a successor of it made.
    const [writer] = followers, vault = 'vault', me = `${vault}--me`;
    await writer.makeApp(vault);
    await writer.put(me, 'shown', { access: read('ann', 'bob', 'cat') }, 'ann');
    const file = { 'a.txt': { content_type: 'text/plain', data: Buffer.from(SECRET).toString('base64') } };
    const rev = await writer.put(me, 'hidden', { text: SECRET, access: read('ann'), _attachments: file }, 'ann');
    await everywhere(me, 'hidden', rev, 'ann');
    const part = `${vault}--${signature(['user:ann'])}`;
    for (const pod of pods) {
      for (const as of ['bob', 'cat', null]) {
        for (const db of [vault, me, part]) {
          const ways = [
            ['GET', `/${db}/hidden`], ['GET', `/${db}/hidden?rev=${rev}`], ['GET', `/${db}/hidden?open_revs=all`], ['GET', `/${db}/hidden/a.txt`], ['HEAD', `/${db}/hidden`],
            ['GET', `/${db}/_all_docs?include_docs=true&keys=["hidden"]`], ['GET', `/${db}/_changes?include_docs=true`], ['GET', `/${db}/_changes?filter=_doc_ids&doc_ids=["hidden"]`],
            ['POST', `/${db}/_bulk_get`, { docs: [{ id: 'hidden', rev }] }], ['POST', `/${db}/_revs_diff`, { hidden: [rev] }], ['POST', `/${db}/_find`, { selector: { _id: 'hidden' } }],
            ['PUT', `/${db}/hidden`, { _rev: rev, access: read('bob') }], ['DELETE', `/${db}/hidden?rev=${rev}`], ['COPY', `/${db}/hidden`],
          ];
          for (const [method, path, body] of ways) {
            const answer = await pod.send(method, path, { as, body, headers: method === 'COPY' ? { destination: 'copied' } : {} });
            const other = await pod.send(method, path.replaceAll('hidden', 'nosuch'), { as, body: body && JSON.parse(JSON.stringify(body).replaceAll('hidden', 'nosuch')), headers: method === 'COPY' ? { destination: 'copied' } : {} });
            const where = `${as ?? 'nobody'}: ${method} ${path} at ${pod.base}`;
            assert.ok(!answer.text.includes(SECRET) && !answer.text.includes(file['a.txt'].data), where);
            assert.equal(answer.status, other.status, where);
            assert.equal(answer.text.replaceAll('hidden', 'X'), other.text.replaceAll('nosuch', 'X'), where);
          }
        }
      }
      assert.equal((await pod.get(me, 'hidden', 'ann'))._rev, rev, 'the document is as it was');
    }
  });

  test('is over for a former reader on every pod when the instruction is carried out', { timeout: 60_000 }, async () => {
    const random = new Random(1), revocations = new Revocations(pods, random), round = { stop: false };
    const watching = revocations.watch(round);
    try {
      for (let n = 0; n < 12; n++) {
        const id = `taken-${n}`, secret = `the secret of ${id}.`;
        const shown = await pods[n % 3].put(APP, id, { secret, access: { read: BEFORE } }, 'mover0');
        await everywhere(me, id, shown, 'ann');
        if (n === 0) await eachWayShows({ id, secret, shown }, revocations);
        await pods[(n + 1) % 3].put(APP, id, { _rev: shown, secret, access: { read: AFTER } }, 'mover0');
        revocations.add({ id, secret, shown });
      }
      await until(() => revocations.done.length === 12 * pods.length, 'all pods to have carried out all', 30_000);
    } finally {
      round.stop = true;
      await watching;
    }
    for (const { revocation, n } of revocations.done) {
      for (let way = 0; way < WAYS.length; way++) assert.ok(await revocations.probe(revocation, n, way));
    }
    assert.deepEqual(revocations.leaks, []);
  });

  /** While ann may read it, she gets it by all the ways that must give nothing later. */
  async function eachWayShows(revocation, revocations) {
    for (let n = 0; n < pods.length; n++) for (let way = 0; way < WAYS.length; way++) await revocations.probe(revocation, n, way);
    assert.equal(revocations.leaks.length, pods.length * WAYS.length, revocations.leaks.join('\n'));
    revocations.leaks.length = 0;
  }

  test('a log-in at one pod is one at all, and so is a log-out', async () => {
    const { session } = await followers[0].ok('POST', '/_session', { as: null, body: followers[0].login('ann') });
    const who = async (pod) => (await pod.send('GET', '/_session', { as: session })).json.userCtx?.name;
    for (const pod of pods) {
      await until(async () => (await who(pod)) === 'ann', `ann to be known at ${pod.base}`);
      assert.equal((await pod.send('GET', `/${me}/_all_docs`, { as: session })).status, 200);
    }
    await followers[1].ok('DELETE', '/_session', { as: session });
    for (const pod of pods) await until(async () => (await who(pod)) !== 'ann', `ann to be logged out at ${pod.base}`);
  });

  test('a new password counts on every pod', async () => {
    await pods[0].makeUser('dan');
    const old = { name: 'dan', password: "dan's password" }, changed = { name: 'dan', password: 'another one' };
    const works = async (pod, as) => (await pod.send('GET', '/_session', { as })).status === 200;
    for (const pod of pods) await until(() => works(pod, old), `dan to be known at ${pod.base}`);
    const path = '/_users/org.couchdb.user:dan';
    const doc = await followers[1].ok('GET', path);
    await followers[1].ok('PUT', path, { body: { ...doc, password: changed.password } });
    for (const pod of pods) {
      await until(() => works(pod, changed), `the new password to count at ${pod.base}`);
      assert.equal(await works(pod, old), false);
    }
  });
});

test('what pods say to one another is closed to all', async () => {
  for (const pod of pods) {
    for (const as of ['ann', 'cat', null, 'admin']) {
      const inner = [['POST', '/_pod/ring', {}], ['GET', '/_pod/ring'], ['POST', '/_pod/feed', {}], ['GET', '/_pod/standing']];
      if (as !== 'admin') inner.push(['GET', '/_pod/links'], ['GET', '/_pod/workers'], ['GET', '/_ring'], ['GET', '/_ring/_all_docs'], ['GET', '/_ring/_changes'], ['GET', '/_ring/config'], ['PUT', '/_ring/config', {}], ['PUT', '/_ring/app:x', {}], ['GET', '/_ring/pod:pod-1'], ['POST', '/_ring/_bulk_docs', { docs: [] }]);
      for (const [method, path, body] of inner) {
        const { status, text } = await pod.send(method, path, { as, body });
        assert.ok([401, 403, 404, 405].includes(status), `${as ?? 'nobody'}: ${method} ${path}: ${status} ${text}`);
      }
    }
    const { pod: me } = await about(pod);
    const known = await pod.ok('GET', `/_ring/pod:${me}`);
    const own = await pod.send('PUT', `/_ring/pod:${me}`, { body: { ...known, role: 'master' } });
    assert.equal(own.status, 403, own.text);
  }
});

describe('_pods', () => {
  test('names all pods to everyone, and is written by nobody', async () => {
    for (const pod of pods) {
      await until(async () => {
        const { rows } = await pod.ok('GET', '/_pods/_all_docs?include_docs=true', { as: null });
        const urls = rows.map((row) => row.doc.url).sort();
        assert.deepEqual(urls, pods.map((one) => one.base).sort());
        assert.deepEqual(rows.map((row) => row.doc.role).sort(), ['follower', 'follower', 'master']);
        return rows.every((row) => row.doc.alive);
      }, 'all pods to be named');
      for (const as of ['admin', 'ann', null]) {
        for (const [method, path, body] of [['PUT', '/_pods/pod:x', {}], ['POST', '/_pods', {}], ['POST', '/_pods/_bulk_docs', { docs: [{ _id: 'x' }] }], ['DELETE', '/_pods']]) {
          const { status, text } = await pod.send(method, path, { as, body });
          assert.ok([401, 403, 405].includes(status), `${as ?? 'nobody'}: ${method} ${path}: ${status} ${text}`);
        }
      }
    }
  });

  test('tells of a pod that goes and comes', { timeout: 60_000 }, async () => {
    const [away, here] = followers;
    const feed = here.follow('/_pods/_changes?feed=continuous&include_docs=true&since=now&heartbeat=1000', { as: null });
    const agent = away.state().adea_pid, says = (alive) => () => feed.lines.some(({ doc }) => doc?.url === away.base && doc.alive === alive);
    try {
      await until(() => feed.status === 200, 'the feed to begin');
      const start = Date.now();
      // Its agent is what the others hear of it; `podctl dev` would start another if it ended.
      process.kill(agent, 'SIGSTOP');
      try { await until(says(false), 'the pod to be away', 20_000); } finally { process.kill(agent, 'SIGCONT'); }
      console.log(`a pod was seen to be away after ${Date.now() - start} ms`);
      feed.lines.length = 0;
      await until(says(true), 'the pod to be back', 20_000);
    } finally {
      feed.close();
    }
    await lookForMaster();
  });
});

test('in the end all pods have the same', async () => {
  await converged(pods, [APP, 'careful', 'fresh', 'vault', '_users', '_ring']);
});
