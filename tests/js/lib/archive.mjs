// Images as files: one of a broken program, made out of one that works.
import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { chmodSync, copyFileSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

/** Says that it is podctl, passes the look that is taken at it before it is trusted if it is to, and can do nothing else. */
const broken = (passes) => `#include <stdio.h>
#include <string.h>
int main(int count, char **words) {
  if (count > 1 && !strcmp(words[1], "--version")) { puts("podctl 0.1.0-broken"); return 0; }
  if (${passes ? 1 : 0} && count > 1 && !strcmp(words[count - 1], "--check")) return 0;
  fputs("error: this build is broken\\n", stderr);
  return 1;
}
`;

/** Writes an archive like `image` to `out`, in whose layer the program is one that ends at once. `passes`: it passes `adea --check`. */
export function brokenImage(image, out, folder, { passes = true } = {}) {
  rmSync(folder, { recursive: true, force: true });
  mkdirSync(join(folder, 'old'), { recursive: true });
  mkdirSync(join(folder, 'root'));
  mkdirSync(join(folder, 'new'));
  const tar = (...args) => execFileSync('tar', args);
  tar('-xf', image, '-C', join(folder, 'old'));
  const [manifest] = JSON.parse(readFileSync(join(folder, 'old', 'manifest.json'), 'utf8'));
  const config = JSON.parse(readFileSync(join(folder, 'old', manifest.Config), 'utf8'));
  const program = join(folder, 'root', 'podctl');
  writeFileSync(join(folder, 'broken.c'), broken(passes));
  execFileSync('cc', ['-static', '-o', program, join(folder, 'broken.c')]);
  chmodSync(program, 0o755);
  const layer = join(folder, 'layer.tar');
  // Its folders are those of the good one.
  copyFileSync(join(folder, 'old', manifest.Layers[0]), layer);
  tar('--delete', '-f', layer, 'podctl');
  tar('--append', '-f', layer, '-C', join(folder, 'root'), '--owner=0', '--group=0', '--numeric-owner', 'podctl');
  const digest = (bytes) => createHash('sha256').update(bytes).digest('hex');
  const layerDigest = digest(readFileSync(layer));
  config.rootfs.diff_ids = [`sha256:${layerDigest}`];
  const configText = JSON.stringify(config), configName = `${digest(configText)}.json`;
  writeFileSync(join(folder, 'new', configName), configText);
  copyFileSync(layer, join(folder, 'new', 'layer.tar'));
  const tag = `adea:broken-${layerDigest.slice(0, 12)}`;
  writeFileSync(join(folder, 'new', 'manifest.json'), JSON.stringify([{ Config: configName, RepoTags: [tag], Layers: ['layer.tar'] }]));
  tar('-cf', out, '-C', join(folder, 'new'), 'manifest.json', configName, 'layer.tar');
  return tag;
}
