// Times how long web-tree-sitter takes to open a grammar, in milliseconds, as JSON on stdout:
// {"init": ..., "cold": ..., "warm": [...]}.
//
//   node time_open.mjs PACKAGES LANGUAGE ROUNDS
//
// PACKAGES is the folder that holds node_modules. "init" links the main module, "cold" is the first
// Language.load of this process and "warm" are ROUNDS more of the same file: each makes a new instance with data of
// its own, out of code that V8 may still have from the load before.

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

async function milliseconds(work) {
  const start = performance.now();
  await work();
  return performance.now() - start;
}

const init = await milliseconds(() => Parser.init());
// Kept, so that no round has to pay for collecting an earlier one.
const languages = [];
const open = async () => languages.push(await Language.load(grammar));
const cold = await milliseconds(open);
const warm = [];
for (let round = 0; round < Number(rounds); round++) warm.push(await milliseconds(open));
process.stdout.write(JSON.stringify({ init, cold, warm }));
