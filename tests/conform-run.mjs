// Runs tests/conform against a pod of its own, with CouchDB's cookie switched on, and compares with the known exceptions.
// usage: node conform-run.mjs [group...] [--match TEXT]
import { spawn } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Pod } from './js/lib/pod.mjs';

const GROUPS = ['server', 'documents', 'revs', 'bulk', 'changes', 'attachments', 'views', 'find', 'design', 'security', 'bad-input', 'pouch', 'replicate'];
const here = (path) => new URL(path, import.meta.url).pathname;

/** The exceptions: check -> reason. */
function exceptions() {
  const lines = readFileSync(here('conform-exceptions.txt'), 'utf8').split('\n').filter((line) => line.trim() && !line.startsWith('#'));
  return new Map(lines.map((line) => {
    const [check, reason] = line.split(' -- ');
    if (!reason?.trim()) throw new Error(`conform-exceptions.txt: no reason in: ${line}`);
    return [check.trim(), reason.trim()];
  }));
}

const args = process.argv.slice(2);
const dir = mkdtempSync(join(tmpdir(), 'adea-conform-'));
const pod = await Pod.start({ args: ['--couch-cookie'] });
let report;
try {
  const json = join(dir, 'report.json');
  const url = pod.url('').replace(/\/$/, '');
  const run = spawn(process.execPath, [here('conform/conform.mjs'), url, ...(args.length ? args : GROUPS), '--json', json], { stdio: ['ignore', 'ignore', 'inherit'] });
  await new Promise((resolve) => run.on('exit', resolve));
  report = JSON.parse(readFileSync(json, 'utf8'));
} finally {
  await pod.stop();
  rmSync(dir, { recursive: true, force: true });
}

const known = exceptions(), faults = [];
let passed = 0, excepted = 0;
for (const { group, name, ok, why } of report.results) {
  const check = `${group} ${name}`;
  if (ok && known.has(check)) faults.push(`${check}: passes, but is in conform-exceptions.txt (${known.get(check)})`);
  else if (!ok && !known.has(check)) faults.push(`${check}: ${why}`);
  else if (ok) passed++;
  else excepted++;
}
if (!args.length) for (const check of known.keys()) if (!report.results.some(({ group, name }) => `${group} ${name}` === check)) faults.push(`${check}: in conform-exceptions.txt, but there is no such check`);
for (const [group, { passed: p, failed: f }] of Object.entries(report.groups)) console.log(`${group}: ${p} of ${p + f}`);
for (const fault of faults) console.log(`FAIL ${fault}`);
console.log(`${excepted} known exceptions (tests/conform-exceptions.txt)`);
console.log(`${passed} passed, ${faults.length} failed`);
process.exit(faults.length || !report.results.length ? 1 : 0);
