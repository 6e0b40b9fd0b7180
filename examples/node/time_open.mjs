// Times how web-tree-sitter opens a grammar, as JSON on stdout: {"main": ms, "cold": [ms, ms], "warm": [[ms, ms], ...]}.
//
//   node time_open.mjs PACKAGES LANGUAGE ROUNDS
//
// PACKAGES is the folder that holds node_modules. "main" is the time to link the main module, "cold" is the first
// Language.load of this process and "warm" are ROUNDS more of the same file: each makes a new instance with data of
// its own, out of code that V8 may still have from the load before. A load is two times, both from its start: until
// the side module is linked and initialised, and until all of its node and field names have been read as well.

import { resolve } from "node:path";
import { performance } from "node:perf_hooks";
import { pathToFileURL } from "node:url";

const [packages, languageName, rounds] = process.argv.slice(2);
if (rounds === undefined) {
  console.error("usage: node time_open.mjs PACKAGES LANGUAGE ROUNDS");
  process.exit(2);
}

const modules = resolve(packages, "node_modules");
const { Language, Parser } = await import(pathToFileURL(resolve(modules, "web-tree-sitter/web-tree-sitter.js")));
const grammar = resolve(modules, `tree-sitter-${languageName}`, `tree-sitter-${languageName}.wasm`);

// Language.load calls this with the exports of the linked module, to read the names.
let linkedAt;
const readNames = Language.loadFromWasmExports;
Language.loadFromWasmExports = (...args) => {
  linkedAt = performance.now();
  return readNames(...args);
};

// Kept, so that no round has to pay for collecting an earlier one.
const languages = [];
async function open() {
  const start = performance.now();
  languages.push(await Language.load(grammar));
  return [linkedAt - start, performance.now() - start];
}

const start = performance.now();
await Parser.init();
const main = performance.now() - start;
const cold = await open();
const warm = [];
for (let round = 0; round < Number(rounds); round++) warm.push(await open());
process.stdout.write(JSON.stringify({ main, cold, warm }));
