// What the test suites of other clients, and CouchDB's own, lean on beyond the documentation's examples: small answers
// that a program compares word by word. The sources are named beside each.
import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { Pod } from './lib/pod.mjs';

const query = (parameters) => '?' + Object.entries(parameters)
  .map(([name, value]) => `${name}=${encodeURIComponent(typeof value === 'string' ? value : JSON.stringify(value))}`).join('&');
const numbered = (from, to, more = {}) => Array.from({ length: to - from }, (_, i) => ({ _id: `${from + i}`, integer: from + i, string: `${from + i}`, ...more }));

let pod;
let made = 0;
const newDb = async () => { const db = `compat${made++}`; await pod.ok('PUT', `/${db}`, { status: 201 }); return db; };
const refused = async (method, path, options, status, error, reason) => {
  const answer = await pod.send(method, path, options);
  assert.deepEqual([answer.status, answer.json?.error], [status, error], `${method} ${path}: ${answer.text}`);
  if (reason) assert.equal(answer.json.reason, reason);
};

before(async () => { pod = await Pod.start({ args: ['--couch-cookie'] }); await pod.makeUser('ann', ['staff']); await pod.makeUser('bob'); });
after(() => pod?.stop());

// CouchDB's test/elixir: changes_async_test, view_update_seq_test, basics_test.
test('a new database begins at sequence 0, whatever was written to others', async () => {
  const other = await newDb();
  await pod.ok('POST', `/${other}/_bulk_docs`, { body: { docs: numbered(0, 20) } });
  const db = await newDb();
  const first = (seq) => seq.split('-')[0];
  assert.equal(first((await pod.ok('GET', `/${db}`)).update_seq), '0');
  assert.equal(first((await pod.ok('GET', `/${db}/_changes`)).last_seq), '0');
  await pod.put(db, 'one', {});
  assert.equal(first((await pod.ok('GET', `/${db}/_changes`)).last_seq), '1');
  assert.equal((await pod.get(db, 'one', 'admin', '?local_seq=true'))._local_seq, 1);
  await pod.ok('PUT', `/${db}/_design/d`, { body: { options: { local_seq: true }, views: { v: { map: 'function (doc) { emit(doc._local_seq) }' } } } });
  const view = await pod.ok('GET', `/${db}/_design/d/_view/v?update_seq=true`);
  assert.deepEqual(view.rows.map((row) => row.key), [1]);
  assert.ok(Number(first(view.update_seq)) >= 2, view.update_seq);
  // A bare number is a place of this database.
  assert.deepEqual((await pod.ok('GET', `/${db}/_changes?since=1`)).results.map((row) => row.id), ['_design/d']);
});

// reader_acl_test; CouchDB 1.0's name for members.
test('a security object with readers alone closes the database', async () => {
  const db = await newDb();
  await pod.put(db, 'a', {});
  await pod.ok('PUT', `/${db}/_security`, { body: { admins: { names: [], roles: [] }, readers: { names: [], roles: ['staff'] } } });
  assert.equal((await pod.send('GET', `/${db}/a`, { as: 'ann' })).status, 200);
  assert.equal((await pod.send('GET', `/${db}/a`, { as: 'bob' })).status, 403);
  assert.equal((await pod.send('GET', `/${db}/a`, { as: null })).status, 401);
  await refused('PUT', `/${db}/_security`, { body: { readers: { names: 'ann' } } }, 400, 'bad_request');
});

// view_multi_key_design_test, view_pagination_test, view_errors_test.
test('a view takes keys, ranges and document ids together as CouchDB does', async () => {
  const db = await newDb();
  await pod.ok('POST', `/${db}/_bulk_docs`, { body: { docs: numbered(0, 100) } });
  await pod.ok('PUT', `/${db}/_design/test`, { body: { views: {
    all: { map: 'function (doc) { emit(doc.integer, doc.string) }' },
    three: { map: 'function (doc) { for (var i = 0; i < 3; i++) emit(i, doc.integer) }' },
    sum: { map: 'function (doc) { emit(doc.integer, doc.integer) }', reduce: 'function (keys, values) { return sum(values) }' },
    none: { map: 'function (doc) { emit(null, null) }' },
  } } });
  const view = (name, parameters, keys) => keys
    ? pod.ok('POST', `/${db}/_design/test/_view/${name}${query(parameters)}`, { body: { keys } })
    : pod.ok('GET', `/${db}/_design/test/_view/${name}${query(parameters)}`);
  const found = await view('three', { startkey_docid: '21', endkey_docid: '23' }, [0, 2]);
  assert.deepEqual(found.rows.map((row) => [row.key, row.value]), [[0, 21], [0, 22], [0, 23], [2, 21], [2, 22], [2, 23]]);
  const page = await view('none', { start_key: null, start_key_doc_id: '1', end_key: null, end_key_doc_id: '40' });
  assert.deepEqual([page.rows.length, page.offset, page.total_rows], [35, 1, 100]);
  const backwards = await view('all', { startkey: 49, startkey_docid: '49', limit: 10, descending: true });
  assert.deepEqual([backwards.offset, backwards.rows[0].key, backwards.rows.length], [50, 49, 10]);
  const path = `/${db}/_design/test/_view`;
  for (const more of [{ startkey: 0 }, { endkey: 0 }, { key: 0 }, { group_level: 2 }])
    await refused('POST', `${path}/all${query(more)}`, { body: { keys: [1] } }, 400, 'query_parse_error');
  await refused('POST', `${path}/sum`, { body: { keys: [1] } }, 400, 'query_parse_error', 'Multi-key fetches for reduce views must use `group=true`');
  await refused('POST', `${path}/all`, { body: { keys: 1 } }, 400, 'bad_request', '`keys` member must be an array.');
  assert.equal((await view('sum', { group: true }, [101, 30, 15])).rows.length, 2);
});

// mango/01_index_crud_test to 26_id_collation_test.
describe('Mango', () => {
  let db;
  const find = (body) => pod.ok('POST', `/${db}/_find`, { body });
  const explain = (body) => pod.ok('POST', `/${db}/_explain`, { body });

  before(async () => {
    db = await newDb();
    await pod.ok('POST', `/${db}/_index`, { body: { index: { fields: ['age'] }, ddoc: 'age', name: 'age' } });
    await pod.ok('POST', `/${db}/_index`, { body: { index: { fields: ['company', 'manager'] }, ddoc: 'cm', name: 'cm' } });
    await pod.ok('POST', `/${db}/_bulk_docs`, { body: { docs: [
      { _id: 'B0', age: 22, company: 'Manglo', manager: true, a: { _id: 'B0' } },
      { _id: 'Z1', age: 31, company: 'Talkola', manager: false, a: { _id: 'Z1' } },
      { _id: 'a1', age: 33, company: 'Pharmex', a: { _id: 'a1' } },
      { _id: 'zed', age: 48, company: null, manager: true, a: { _id: 'zed' } },
    ] } });
  });

  test('what lies below _index is told apart, and its list is paged with semicolons too', async () => {
    for (const path of ['a', 'a/b', 'a/b/c/d']) await refused('GET', `/${db}/_index/${path}`, {}, 404, 'not_found');
    for (const path of ['_bulk_delete', 'age/json/age', '_design/age/json/age']) await refused('GET', `/${db}/_index/${path}`, {}, 405, 'method_not_allowed');
    await refused('POST', `/${db}/_index`, { body: { index: { fields: ['x'] }, name: '' } }, 400, 'invalid_index_name');
    const listed = await pod.ok('GET', `/${db}/_index?limit=1;skip=1`);
    assert.deepEqual([listed.total_rows, listed.indexes.map((index) => index.name)], [3, ['age']]);
  });

  test('an explanation names what was not taken, all documents last, and says why there is nothing', async () => {
    const told = await explain({ selector: { age: 22 } });
    assert.deepEqual(told.index_candidates.map((one) => one.index.name), ['cm', '_all_docs']);
    assert.deepEqual(told.selector_hints, [{ type: 'json', indexable_fields: ['age'], unindexable_fields: [] }]);
    assert.deepEqual((await explain({ selector: { zork: 1 } })).mrargs.start_key, null);
    const nothing = await explain({ selector: { age: 22 }, sort: ['zork'] });
    assert.equal(nothing.index, null);
    assert.ok(nothing.index_candidates.every((one) => !one.analysis.usable));
  });

  test('an index that was asked for and does not fit is named in a warning', async () => {
    const warned = await find({ selector: { company: 'Pharmex' }, use_index: '_design/cm' });
    assert.match(warned.warning, /^_design\/cm was not used because it does not contain a valid index for this query\./);
    assert.deepEqual(warned.docs.map((doc) => doc._id), ['a1']);
    for (const use_index of ['foo/bar/baz', ['foo', 'bar', 'baz']])
      await refused('POST', `/${db}/_find`, { body: { selector: { age: 1 }, use_index } }, 400, 'invalid_index_name');
    await refused('POST', `/${db}/_find`, { body: { selector: { company: 'x' }, allow_fallback: false } }, 400, 'no_usable_index');
  });

  test('ids have the order of bytes, other fields that of collation', async () => {
    const ids = async (selector) => (await find({ selector, fields: ['_id'] })).docs.map((doc) => doc._id);
    assert.deepEqual(await ids({ _id: { $gte: 'Z' } }), ['Z1', 'a1', 'zed']);
    assert.deepEqual(await ids({ _id: { $lt: 'a' } }), ['B0', 'Z1']);
    assert.deepEqual(await ids({ 'a._id': { $gte: 'Z' } }), ['Z1', 'zed']);
  });

  test('mistakes have the words of CouchDB', async () => {
    const mistake = (body, error, reason) => refused('POST', `/${db}/_find`, { body }, 400, error, reason);
    await mistake({ selector: { age: { $beginsWith: 1 } } }, 'invalid_operator', 'Invalid operator: $beginsWith');
    await mistake({ selector: { age: { $foo: 1 } } }, 'invalid_operator', 'Invalid operator: $foo');
    await mistake({}, 'missing_required_key', 'Missing required key: selector');
    await mistake({ selector: {}, bookmark: 'bad-bookmark' }, 'invalid_bookmark', 'Invalid bookmark value: "bad-bookmark"');
    await mistake({ selector: { _id: { $gt: null } }, sort: ['name'] }, 'no_usable_index', 'No index exists for this sort, try indexing by the sort fields.');
    for (const limit of [null, true, -1, 1.2, 'x', {}]) assert.equal((await pod.send('POST', `/${db}/_find`, { body: { selector: {}, limit } })).status, 400);
  });
});

// conflicts_test: a revision's name is that of CouchDB, so that the same edits meet on both.
test('revisions have the names that CouchDB gives them', async () => {
  const db = await newDb();
  const put = async (doc) => (await pod.ok('PUT', `/${db}/doc`, { body: doc })).rev;
  const revs = [await put({ val: 'r0' })];
  revs.push(await put({ val: 'r1', _rev: revs[0] }), await put({ val: 'r2', _rev: '2-1d8171ab3a91475cfece749291e6f897' }));
  assert.deepEqual(revs, ['1-47f3268e7546965196b57572099f4372', '2-1d8171ab3a91475cfece749291e6f897', '3-3fb0a342d2ce092fdcc77856dbe8a2ef']);
});
