// The README's example does what it says.
import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import { promisify } from 'node:util';
import { Pod } from './lib/pod.mjs';

const at = (path) => new URL(path, import.meta.url);

test('the example runs, and shows each step', async () => {
  const pod = await Pod.start();
  try {
    const { stdout } = await promisify(execFile)(process.execPath, [at('../example/notes.mjs').pathname, pod.base, pod.admin.name, pod.admin.password], { timeout: 60_000 });
    assert.deepEqual(stdout.trim().split('\n'), [
      'bob has the draft, carol has 0 notes',
      'carol reads what bob published',
      "carol's change is forbidden, and alice still reads: Published",
      "it is gone from bob's device, and alice keeps: Mine",
    ]);
  } finally { await pod.stop(); }
});

test('the README shows it as it is, in under 60 lines', () => {
  const example = readFileSync(at('../example/notes.mjs'), 'utf8');
  assert.ok(example.trim().split('\n').length < 60);
  const readme = readFileSync(at('../../README.md'), 'utf8');
  const app = example.slice(example.indexOf('// ---- the app'));
  assert.ok(readme.includes(app.trim()), 'the README has the part about the app, word for word');
});
