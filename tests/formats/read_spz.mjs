// What the reference library reads of an .spz, in a ply's axes, as JSON: node read_spz.mjs MODULES IN OUT
import {readFileSync, writeFileSync} from 'node:fs';

const [modules, input, output] = process.argv.slice(2);
const {default: createSpz} = await import(`${modules}/@adobe/spz/dist/spz.js`);
const spz = await createSpz();
const cloud = spz.loadSpzFromBuffer(new Uint8Array(readFileSync(input)), {to: spz.CoordinateSystem.RDF});
const columns = ['positions', 'scales', 'rotations', 'alphas', 'colors', 'sh'];
writeFileSync(output, JSON.stringify(Object.fromEntries(columns.map((name) => [name, Array.from(cloud[name])]))));
process.exit(0);
