// Compiles qcow2.ksy to the two Python modules in qcow2c/attest/_kaitai:
//
//   qcow2.py            as the Kaitai Struct compiler makes it, with every check that `valid` asks for;
//   qcow2_unchecked.py  the same without `valid`, so that the fields of a damaged image can be read and compared.
//
// `node compile.mjs` writes them; `node compile.mjs --check` compares them with the files that are checked in, and
// fails on any difference. Run `npm ci` in this directory first; `make ksy` and `make ksy-check` do both.

import { readFileSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import compiler from "kaitai-struct-compiler";
import { parse } from "yaml";

const source = new URL("qcow2.ksy", import.meta.url);
const target = new URL("../qcow2c/attest/_kaitai/", import.meta.url);

const MODULES = { "qcow2.py": (model) => model, "qcow2_unchecked.py": unchecked };

/** The same description, without checks and without documentation. */
function unchecked(node) {
  if (Array.isArray(node)) {
    return node.map(unchecked);
  }
  if (node === null || typeof node !== "object") {
    return node;
  }
  const kept = {};
  for (const [key, value] of Object.entries(node)) {
    if (key === "contents") {
      kept.size = value.reduce((length, part) => length + (typeof part === "string" ? part.length : 1), 0);
    } else if (!["doc", "doc-ref", "valid"].includes(key)) {
      kept[key] = unchecked(value);
    }
  }
  return kept;
}

async function compile(model) {
  const importer = { importYaml: (name) => Promise.reject(new Error(`qcow2.ksy imports nothing, yet asks for ${name}`)) };
  const files = await compiler.compile("python", model, importer, false);
  return files["qcow2.py"];
}

async function main(check) {
  const model = parse(readFileSync(source, "utf8"));
  let differences = 0;
  for (const [name, transformed] of Object.entries(MODULES)) {
    const compiled = await compile(transformed(model));
    const file = new URL(name, target);
    if (!check) {
      writeFileSync(file, compiled);
    } else if (compiled !== readFileSync(file, "utf8")) {
      console.error(`${fileURLToPath(file)} is not what formats/qcow2.ksy compiles to: run \`make ksy\``);
      differences += 1;
    }
  }
  return differences === 0 ? 0 : 1;
}

process.exitCode = await main(process.argv.includes("--check"));
