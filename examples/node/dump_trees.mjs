// Prints what web-tree-sitter itself makes of source files, as JSON on stdout: one array a file, in the order given.
//
//   node dump_trees.mjs PACKAGES LANGUAGE FILE...
//
// PACKAGES is the folder that holds node_modules. A node is
// [depth, field name or null, type, named, missing, start, end]; nodes come in document order (parents first) and
// start and end count UTF-16 code units, the unit in which web-tree-sitter counts.

import { readFileSync } from "node:fs";
import { resolve } from "node:path";
import { pathToFileURL } from "node:url";

const [packages, languageName, ...files] = process.argv.slice(2);
if (files.length === 0) {
  console.error("usage: node dump_trees.mjs PACKAGES LANGUAGE FILE...");
  process.exit(2);
}

const modules = resolve(packages, "node_modules");
const { Language, Parser } = await import(pathToFileURL(resolve(modules, "web-tree-sitter/web-tree-sitter.js")));
await Parser.init();
const grammar = `tree-sitter-${languageName}`;
const language = await Language.load(resolve(modules, grammar, `${grammar}.wasm`));
const parser = new Parser();
parser.setLanguage(language);

function dump(file) {
  const tree = parser.parse(readFileSync(file, "utf8"));
  const cursor = tree.walk();
  const nodes = [];
  for (;;) {
    nodes.push([
      cursor.currentDepth,
      cursor.currentFieldName,
      cursor.nodeType,
      cursor.nodeIsNamed,
      cursor.nodeIsMissing,
      cursor.startIndex,
      cursor.endIndex,
    ]);
    if (cursor.gotoFirstChild()) continue;
    while (!cursor.gotoNextSibling()) {
      if (!cursor.gotoParent()) {
        cursor.delete();
        tree.delete();
        return nodes;
      }
    }
  }
}

process.stdout.write(JSON.stringify(files.map(dump)));
