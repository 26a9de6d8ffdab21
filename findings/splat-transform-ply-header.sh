#!/usr/bin/env bash
# splat-transform takes every ply for little-endian binary with the vertices first, whatever the header says.
#
# @playcanvas/splat-transform 3.7.0 converts four plys of the same two Gaussians. Ascii, big-endian, and a
# little-endian file with another element before the vertices are all valid plys, and all come out as noise,
# with exit code 0 and no word of it. It surprises because the reader does parse the header: property names,
# types and order are heeded, only `format` and the elements' places are not, and the same tool tells other
# headers that it cannot read. Who converts a ply of a tool that writes ascii publishes garbage unknowingly.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
npm init --yes >/dev/null
npm install --silent --no-audit --no-fund --ignore-scripts @playcanvas/splat-transform@3.7.0 >/dev/null
cat >check.mjs <<'END'
import {execFileSync} from 'node:child_process';
import {readFileSync, writeFileSync} from 'node:fs';

const names = ['x', 'y', 'z', 'f_dc_0', 'f_dc_1', 'f_dc_2', 'opacity', 'scale_0', 'scale_1', 'scale_2',
  'rot_0', 'rot_1', 'rot_2', 'rot_3'];
const rows = [[1, 2, 3, 0.5, 0.25, -0.5, 1, -3, -4, -5, 1, 0, 0, 0],
  [-1, -2, -3, -0.5, 0.5, 0.25, 2, -4, -3, -5, 0, 1, 0, 0]];
const bytes = (values, little) => {
  const out = Buffer.alloc(4 * values.length);
  values.forEach((value, i) => little ? out.writeFloatLE(value, 4 * i) : out.writeFloatBE(value, 4 * i));
  return out;
};
const header = (format, before = '') => Buffer.from(`ply\nformat ${format} 1.0\n${before}element vertex 2\n`
  + names.map((name) => `property float ${name}\n`).join('') + 'end_header\n');
const number = (value) => value.toFixed(6);
const plain = header('binary_little_endian');
const inputs = {
  'binary_little_endian': [plain, bytes(rows.flat(), true)],
  'ascii': [header('ascii'), Buffer.from(rows.map((row) => row.map(number).join(' ') + '\n').join(''))],
  'binary_big_endian': [header('binary_big_endian'), bytes(rows.flat(), false)],
  'camera element first': [header('binary_little_endian', 'element camera 1\nproperty float focal\n'),
    bytes([50, ...rows.flat()], true)],
};
let changed = false;
for (const [name, parts] of Object.entries(inputs)) {
  writeFileSync('in.ply', Buffer.concat(parts));
  let code = 0, read = [];
  try {
    execFileSync('npx', ['splat-transform', '--quiet', '--overwrite', 'in.ply', 'out.ply'], {stdio: 'ignore'});
    const out = readFileSync('out.ply');
    const body = out.indexOf('end_header\n') + 'end_header\n'.length;
    read = [0, 4, 8].map((at) => out.readFloatLE(body + at));
  } catch (error) { code = error.status; }
  const right = code === 0 && read.every((value, i) => value === rows[0][i]);
  console.log(`${name}: exit code ${code}, first position ${read.join(' ')} (is 1 2 3)`);
  changed ||= code !== 0 || right !== (name === 'binary_little_endian');
}
process.exit(changed ? 1 : 0);
END
echo "@playcanvas/splat-transform 3.7.0, node $(node --version)"
node check.mjs || { echo "changed: not as found"; exit 1; }
