// What is under deploy/: the install script into a folder of its own, the unit, the compose file, the cloud-init template.
import assert from 'node:assert/strict';
import { execFileSync, spawnSync } from 'node:child_process';
import { chmodSync, existsSync, mkdirSync, mkdtempSync, readFileSync, readdirSync, rmSync, statSync, utimesSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, relative } from 'node:path';
import { after, before, test } from 'node:test';
import { Elf } from './lib/elf.mjs';
import { PROGRAM } from './lib/pod.mjs';
import { until } from './lib/wait.mjs';

const DEPLOY = new URL('../../deploy/', import.meta.url).pathname;
const SCRIPT = join(DEPLOY, 'install.sh');
/** What is told of the image. */
const MAX_IMAGE_BYTES = 30_000_000;
/** What a release build loads when `deploy/build` makes an image of nearly that of the same sources: with 38.6 MB it was 27.1 MB. Beyond it, build that and look. */
const MAX_RELEASE_BYTES = 42_000_000;
/** Of a program without symbols: its notes and the table of its sections. */
const MAX_UNLOADED_BYTES = 100_000;
const BUILD = new Elf(readFileSync(PROGRAM));
const IS_STRIPPED = BUILD.bytes.length - BUILD.loaded < MAX_UNLOADED_BYTES;
let folder;

before(() => { folder = mkdtempSync(join(tmpdir(), 'adea-deploy-')); });
after(() => rmSync(folder, { recursive: true, force: true }));

const install = (...args) => {
  const { status, stdout, stderr } = spawnSync('sh', [SCRIPT, ...args], { encoding: 'utf8', cwd: '/' });
  return { status, stdout, stderr };
};
const isThere = (program) => spawnSync('sh', ['-c', `command -v ${program}`]).status === 0;
/** All files and folders below, with their modes. */
function tree(root) {
  return readdirSync(root, { recursive: true }).map((name) => `${relative(root, join(root, name))} ${(statSync(join(root, name)).mode & 0o7777).toString(8)}`).sort();
}

test('a dry run says what it would do, and does nothing', () => {
  const root = join(folder, 'dry');
  const done = install('--root', root, '--binary', PROGRAM, '--dry-run');
  assert.equal(done.status, 0, done.stderr);
  for (const part of ['usr/local/bin/podctl', 'adea.service', 'completions bash', 'man1']) assert.ok(done.stdout.includes(part), part);
  assert.ok(!existsSync(root));
});

test('it installs all of it, twice as once, and takes it away again but for what a pod has kept', () => {
  const root = join(folder, 'all');
  const first = install('--root', root, '--binary', PROGRAM);
  assert.equal(first.status, 0, first.stdout + first.stderr);
  assert.match(first.stdout, /podctl init/);
  const installed = tree(root);
  for (const line of ['usr/local/bin/podctl 755', 'etc/systemd/system/adea.service 644', 'etc/adea 755', 'var/lib/adea 700',
    'usr/local/share/bash-completion/completions/podctl 644', 'usr/local/share/zsh/site-functions/_podctl 644', 'usr/local/share/fish/vendor_completions.d/podctl.fish 644']) {
    assert.ok(installed.includes(line), `${line} is not in\n${installed.join('\n')}`);
  }
  assert.ok(installed.some((line) => line.startsWith('usr/local/share/man/man1/podctl.1 ')), 'a manual page');
  assert.equal(execFileSync(join(root, 'usr/local/bin/podctl'), ['--version'], { encoding: 'utf8' }), execFileSync(PROGRAM, ['--version'], { encoding: 'utf8' }));
  assert.ok(readFileSync(join(root, 'usr/local/share/bash-completion/completions/podctl')).length > 100);

  assert.equal(install('--root', root, '--binary', PROGRAM).status, 0);
  assert.deepEqual(tree(root), installed);

  writeFileSync(join(root, 'var/lib/adea/ring.json'), '{}');
  const gone = install('--root', root, '--uninstall');
  assert.equal(gone.status, 0, gone.stderr);
  assert.match(gone.stdout, /kept: .*var\/lib\/adea/);
  const files = tree(root).filter((line) => statSync(join(root, line.replace(/ \d+$/, ''))).isFile());
  assert.deepEqual(files.map((line) => line.split(' ')[0]), ['var/lib/adea/ring.json']);
  assert.ok(!existsSync(join(root, 'etc/adea')));
});

test('a program that isn\'t podctl, or doesn\'t run, is refused before anything is written', () => {
  const root = join(folder, 'refused');
  const fake = join(folder, 'fake');
  for (const [text, why] of [['#!/bin/sh\necho other 1.0\n', /is not podctl/], ['\x7fELF broken', /doesn't run/]]) {
    writeFileSync(fake, text);
    chmodSync(fake, 0o755);
    const done = install('--root', root, '--binary', fake);
    assert.equal(done.status, 1);
    assert.match(done.stderr, why);
    assert.ok(!existsSync(root));
  }
  assert.equal(install('--root', root, '--binary', join(folder, 'nothing')).status, 1);
  assert.equal(install('--wat').status, 2);
});

test('the scripts are plain sh', () => {
  for (const name of ['build', 'install.sh', 'image-context']) {
    execFileSync('sh', ['-n', join(DEPLOY, name)]);
    if (isThere('shellcheck')) execFileSync('shellcheck', [join(DEPLOY, name)]);
  }
});

test('systemd understands the unit', { skip: !isThere('systemd-analyze') && 'no systemd-analyze here' }, () => {
  // The program need not be installed on the machine that tests it.
  const unit = join(folder, 'adea.service');
  writeFileSync(unit, readFileSync(join(DEPLOY, 'adea.service'), 'utf8').replace('/usr/local/bin/podctl', PROGRAM));
  const done = spawnSync('systemd-analyze', ['verify', '--man=no', unit], { encoding: 'utf8' });
  assert.equal(done.stderr.split('\n').filter((line) => line.includes('adea.service')).join('\n'), '');
  assert.equal(done.status, 0, done.stderr);
});

test('the commands and flags that the files name exist', () => {
  const help = (...args) => execFileSync(PROGRAM, [...args, '--help'], { encoding: 'utf8' });
  const known = (command, flags) => { const text = help(...command); for (const flag of flags) assert.ok(text.includes(flag), `${command.join(' ')} ${flag}`); };
  const compose = readFileSync(join(DEPLOY, 'compose.yaml'), 'utf8');
  for (const line of compose.matchAll(/command: \[(\w+), (.*)\]/g)) {
    known([line[1]], [...line[2].matchAll(/--[a-z-]+/g)].map((flag) => flag[0]));
  }
  known(['health'], ['--url']);
  known(['image'], ['--output', '--tag']);
  known(['adea'], ['--config']);
  known(['join'], ['--token-file', '--url', '--start']);
  known(['init'], ['--data', '--config', '--start']);
  known(['token', 'create'], ['--uses', '--ttl']);
});

test('the compose file and the cloud-init template can be read', { skip: !isThere('docker-compose') && 'no docker-compose here' }, () => {
  execFileSync('docker-compose', ['-f', join(DEPLOY, 'compose.yaml'), 'config', '--quiet'], { stdio: ['ignore', 'ignore', 'pipe'] });
  // docker-compose of Debian is Python and brings a reader of YAML.
  const script = 'import json, sys, yaml; print(json.dumps(yaml.safe_load(open(sys.argv[1]))))';
  const read = spawnSync('/usr/bin/python3', ['-c', script, join(DEPLOY, 'cloud-init.yaml')], { encoding: 'utf8' });
  if (/No module named/.test(read.stderr)) return;
  const template = JSON.parse(read.stdout);
  assert.ok(readFileSync(join(DEPLOY, 'cloud-init.yaml'), 'utf8').startsWith('#cloud-config\n'));
  assert.equal(template.write_files[0].permissions, '0600');
  assert.ok(template.runcmd.every((command) => Array.isArray(command)));
});

test('the image\'s build folder has what the Dockerfile copies', () => {
  const context = join(folder, 'context');
  execFileSync(join(DEPLOY, 'image-context'), [context, PROGRAM]);
  const copied = [...readFileSync(join(DEPLOY, 'Dockerfile'), 'utf8').matchAll(/^COPY (?:--\S+ )*(\S+) /gm)].map((line) => line[1]);
  assert.deepEqual(copied, ['root/', 'podctl']);
  for (const name of copied) assert.ok(existsSync(join(context, name)), name);
});

test('an image of the same program has the same bytes, whenever, wherever and by whomever it is made', async () => {
  // An image's program needs no other to start. That of a debug build does: here it is told not to, and cut, as nobody starts it.
  const program = BUILD.isStatic ? BUILD.bytes : BUILD.madeStatic().subarray(0, 8 << 20);
  const make = (name, mode, umask, { changed, env, args = [] }) => {
    const place = join(folder, name);
    mkdirSync(join(place, 'in'), { recursive: true });
    const [file, archive] = [join(place, 'in', `${name}-program`), join(place, `${name}.tar`)];
    writeFileSync(file, program);
    chmodSync(file, mode);
    utimesSync(file, changed, changed);
    const script = `umask ${umask} && exec "$0" image --output "$@"`;
    execFileSync('sh', ['-c', script, PROGRAM, archive, '--binary', file, ...args], { cwd: place, env: { PATH: process.env.PATH, ...env }, stdio: 'ignore' });
    return archive;
  };
  const began = Math.floor(Date.now() / 1000);
  const one = make('one', 0o700, '077', { changed: 1, env: { TZ: 'UTC', HOME: folder } });
  // Archives tell times in seconds.
  await until(() => Math.floor(Date.now() / 1000) > began, 'the next second');
  const two = make('another', 0o755, '000', { changed: 1_700_000_000, env: { TZ: 'Asia/Tokyo', LANG: 'de_DE.UTF-8', SOURCE_DATE_EPOCH: '5', USER: 'ann' } });
  execFileSync('cmp', [one, two]);
  // It has no more than the program, and that is what is compared.
  assert.ok(statSync(one).size >= program.length && statSync(one).size < program.length + 20_000, `${statSync(one).size} bytes`);
  const renamed = make('renamed', 0o755, '022', { changed: 2, env: {}, args: ['--tag', 'adea:other'] });
  assert.equal(spawnSync('cmp', [one, renamed]).status, 1, 'another image is another');
});

test(`the image has less than ${MAX_IMAGE_BYTES / 1e6} MB${IS_STRIPPED ? '' : ', as far as a build with symbols tells'}`, { skip: !BUILD.isStatic && 'only whether the bytes are the same is checked: a build that isn\'t static is no image\'s' }, () => {
  if (!IS_STRIPPED) {
    assert.ok(BUILD.loaded < MAX_RELEASE_BYTES, `the program has ${BUILD.loaded} bytes without its symbols: what \`deploy/build\` makes of it is no longer small enough`);
    return;
  }
  const archive = join(folder, 'image.tar');
  execFileSync(PROGRAM, ['image', '--output', archive], { stdio: 'ignore' });
  assert.ok(statSync(archive).size < MAX_IMAGE_BYTES, `${statSync(archive).size} bytes`);
});
