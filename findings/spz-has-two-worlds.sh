#!/usr/bin/env bash
# One ply becomes two .spz files that stand on each other's heads, by the format's own library and by splat-transform.
#
# SPZ's specification says that y points up. Its reference library (@adobe/spz 0.2.3, of the nianticlabs repository),
# told that a scene has a ply's axes, negates y and z; @playcanvas/splat-transform 3.7.0 stores a ply's numbers as they
# are. Both are valid, of the same version, and nothing in either says which it is. It surprises because
# splat-transform writes with that very library, telling it no axes; each program reads its own files right, so nobody
# notices until a file passes from one to the other: then up is down, and the front is at the back.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
npm init --yes >/dev/null
npm install --silent --no-audit --no-fund --ignore-scripts @playcanvas/splat-transform@3.7.0 @adobe/spz@0.2.3 >/dev/null
cat >check.mjs <<'END'
import createSpz from '@adobe/spz';
import {execFileSync} from 'node:child_process';
import {readFileSync, writeFileSync} from 'node:fs';
import {gunzipSync} from 'node:zlib';

const log = console.log;
console.log = () => {};  // the library talks
const spz = await createSpz();
const names = ['x', 'y', 'z', 'f_dc_0', 'f_dc_1', 'f_dc_2', 'opacity', 'scale_0', 'scale_1', 'scale_2',
  'rot_0', 'rot_1', 'rot_2', 'rot_3'];
const row = new Float32Array([1, 2, 3, 0.5, 0.25, -0.5, 1, -3, -4, -5, 1, 0, 0, 0]);
const header = 'ply\nformat binary_little_endian 1.0\nelement vertex 1\n'
  + names.map((name) => `property float ${name}\n`).join('') + 'end_header\n';
writeFileSync('in.ply', Buffer.concat([Buffer.from(header), Buffer.from(row.buffer)]));
const transform = (...words) => execFileSync('npx', ['splat-transform', '-q', '-w', ...words]);
transform('--spz-version', '3', 'in.ply', 'transform.spz');

const column = (...numbers) => new Float32Array(numbers);
const cloud = {numPoints: 1, shDegree: 0, antialiased: false, extensions: [], positions: column(1, 2, 3),
  scales: column(-3, -4, -5), rotations: column(0, 0, 0, 1), alphas: column(1), colors: column(0.5, 0.25, -0.5),
  sh: column()};
const options = {version: 3, from: spz.CoordinateSystem.RDF, sh1Bits: 8, shRestBits: 8};
writeFileSync('library.spz', spz.saveSpzToBuffer(cloud, options));

const stored = (file) => {
  const data = gunzipSync(readFileSync(file)), fixed = (at) => data.readIntLE(at, 3) / 2 ** data[13];
  return [16, 19, 22].map(fixed).join(' ');
};
transform('library.spz', 'out.ply');
const out = readFileSync('out.ply'), body = out.indexOf('end_header\n') + 'end_header\n'.length;
const passed = [0, 4, 8].map((at) => out.readFloatLE(body + at)).join(' ');
const found = {'stored by splat-transform': stored('transform.spz'), 'stored by the library': stored('library.spz'),
  "the library's, as splat-transform makes a ply of it": passed};
for (const [name, numbers] of Object.entries(found)) log(`${name}: ${numbers} (the ply has 1 2 3)`);
process.exit(Object.values(found).join() === '1 2 3,1 -2 -3,1 -2 -3' ? 0 : 1);
END
echo "@playcanvas/splat-transform 3.7.0, @adobe/spz 0.2.3, node $(node --version)"
node check.mjs || { echo "changed: not as found"; exit 1; }
