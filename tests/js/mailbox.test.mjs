// Messages between users: a mailbox is a personal database, and sending is writing a document. Nobody waits for an answer.
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { Client } from './lib/clients.mjs';
import { Pod } from './lib/pod.mjs';
import { until } from './lib/wait.mjs';

// Whoever a message is to reads it and may remove it; whoever it is from may not read it again: it is in the post.
const RULES = {
  rules: [{ selector: { type: 'message' }, read: ['user:${to}'], write: ['user:${to}', 'user:${from}'] }],
};
const DESIGN = {
  // Nobody writes in another's name, and nobody changes what was sent.
  validate_doc_update: `function (doc, old, user) {
    if (doc._deleted || user.roles.indexOf('_admin') >= 0) return;
    if (doc.access) throw({forbidden: 'the mail has rules of its own'});
    if (doc.type !== 'message') throw({forbidden: 'only messages go by mail'});
    if (doc.from !== user.name) throw({forbidden: 'that is not your name'});
    if (old) throw({forbidden: 'what is sent is sent'});
  }`,
  views: { by_sender: { map: "function (doc) { if (doc.type === 'message') emit(doc.from, null); }", reduce: '_count' } },
};
let pod;
before(async () => {
  pod = await Pod.start();
  await Promise.all(['ann', 'bob', 'cat'].map((name) => pod.makeUser(name)));
  await pod.makeApp('mail');
  await pod.ok('PUT', '/_ring/app:mail', { body: RULES });
  await pod.ok('PUT', '/mail/_design/mail', { body: DESIGN });
});
after(() => pod?.stop());

const message = (id, from, to, text) => ({ _id: id, type: 'message', from, to, text });

test('a message reaches its reader and nobody else, also from a device that was offline', async () => {
  const [ann, bob, cat] = ['ann', 'bob', 'cat'].map((name) => new Client(pod, name, 'mail--me'));
  try {
    await ann.local.put(message('m1', 'ann', 'bob', 'written on the train'));
    for (const client of [ann, bob, cat]) client.online();
    await bob.shows('m1', (doc) => doc?.text === 'written on the train');
    // In the post: the sender's device keeps its own copy, as a letter book; the pod shows it to its reader only.
    assert.equal((await pod.send('GET', '/mail--me/m1', { as: 'ann' })).status, 404);
    assert.equal(await cat.get('m1'), null);
    assert.equal((await pod.send('GET', '/mail--me/m1', { as: 'cat' })).status, 404);
    // Bob throws it away, on his device, and it is gone everywhere.
    await bob.local.remove(await bob.local.get('m1'));
    await until(async () => (await pod.send('GET', '/mail/m1')).status === 404, 'the message to be gone', 20_000);
  } finally {
    await Promise.all([ann, bob, cat].map((client) => client.offline()));
  }
});

test('nobody sends in another name, changes what was sent, or opens a mailbox', async () => {
  const forged = await pod.send('PUT', '/mail--me/f1', { as: 'cat', body: message('f1', 'ann', 'bob', 'send money') });
  assert.equal(forged.status, 403);
  const free = { ...message('f0', 'cat', 'bob', 'x'), type: 'invoice' };
  const refused = await pod.send('PUT', '/mail--me/f0', { as: 'cat', body: { ...free, access: { read: ['user:cat'] } } });
  assert.deepEqual([refused.status, refused.json], [403, { error: 'forbidden', reason: 'the mail has rules of its own' }]);
  const pushed = await pod.ok('POST', '/mail--me/_bulk_docs', {
    as: 'cat', body: { new_edits: false, docs: [{ ...message('f2', 'ann', 'bob', 'send money'), _rev: `1-${'a'.repeat(32)}` }] },
  });
  assert.equal(pushed[0].error, 'forbidden');
  const own = { ...message('f3', 'cat', 'bob', 'x'), access: { read: ['user:cat', 'users'], write: ['user:cat'] } };
  assert.equal((await pod.send('PUT', '/mail--me/f3', { as: 'cat', body: own })).status, 403);
  const { rev } = await pod.ok('PUT', '/mail--me/m2', { as: 'ann', body: message('m2', 'ann', 'bob', 'as it was') });
  // Bob may remove it; he may not make ann have said something else.
  const changed = await pod.send('PUT', '/mail--me/m2', { as: 'bob', body: { ...message('m2', 'ann', 'bob', 'as it was not'), _rev: rev } });
  assert.equal(changed.status, 403);
  assert.equal((await pod.get('mail--me', 'm2', 'bob')).text, 'as it was');
});

test('a mailbox is counted by a view, each over its own', async () => {
  for (const [n, from] of ['ann', 'ann', 'cat'].entries()) {
    await pod.ok('PUT', `/mail--me/c${n}`, { as: from, body: message(`c${n}`, from, 'bob', 'hello') });
  }
  await pod.ok('PUT', '/mail--me/c9', { as: 'bob', body: message('c9', 'bob', 'ann', 'hello') });
  const count = async (as) => {
    const { rows } = await pod.ok('GET', '/mail--me/_design/mail/_view/by_sender?group=true&startkey=%22a%22', { as });
    return Object.fromEntries(rows.map((row) => [row.key, row.value]));
  };
  const bob = await count('bob');
  assert.deepEqual([bob.ann >= 2, bob.cat, bob.bob], [true, 1, undefined]);
  assert.deepEqual(await count('ann'), { bob: 1 });
  assert.deepEqual(await count('cat'), {});
});
