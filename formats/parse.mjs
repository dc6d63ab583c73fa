// Reads images with the parser that the compiler makes for JavaScript, and prints what it found.
//
// `node parse.mjs IMAGE...` prints one line a field: the path of names to it, without case and underscores, and its
// value: a number, or the SHA-256 of bytes and text. A part that cannot be read is a line that ends in `!`. Lines are in
// order of their paths; `tests/test_ksy_javascript.py` walks through the Python parser alike and compares.

import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import vm from "node:vm";
import { compiled, described } from "./description.mjs";

const { KaitaiStream } = createRequire(import.meta.url)("kaitai-struct");

// Of a longer list, this many items at either end are looked at.
const ENDS = 8;

async function parser() {
  const text = (await compiled("javascript", described()))["Qcow2.js"];
  const module = { exports: {} };
  const load = vm.runInThisContext(`(function (module, exports, require) {${text}\n})`, { filename: "Qcow2.js" });
  load(module, module.exports, () => KaitaiStream);
  return module.exports.Qcow2;
}

const plain = (name) => name.replaceAll("_", "").toLowerCase();

/** The names of all fields, read at once or when they are asked for. */
function fields(node) {
  const computed = Object.entries(Object.getOwnPropertyDescriptors(Object.getPrototypeOf(node)));
  const names = computed.filter(([, descriptor]) => descriptor.get).map(([name]) => name);
  return [...new Set([...Object.keys(node), ...names])].filter((name) => !name.startsWith("_"));
}

function shown(value) {
  if (value instanceof Uint8Array || typeof value === "string") {
    return createHash("sha256").update(value).digest("hex");
  }
  return BigInt(value).toString();
}

function walk(node, path, lines) {
  for (const name of fields(node)) {
    const here = `${path}.${plain(name)}`;
    let value;
    try {
      value = node[name];
    } catch {
      lines.push(`${here} !`);
      continue;
    }
    collect(value, here, lines);
  }
}

function collect(value, here, lines) {
  if (value === undefined || value === null) {
    return;
  }
  if (Array.isArray(value)) {
    lines.push(`${here} ${value.length} items`);
    value.forEach((item, index) => {
      if (index < ENDS || index >= value.length - ENDS) {
        collect(item, `${here}[${index}]`, lines);
      }
    });
  } else if (typeof value === "object" && !(value instanceof Uint8Array)) {
    walk(value, here, lines);
  } else {
    lines.push(`${here} ${shown(value)}`);
  }
}

const Qcow2 = await parser();
for (const file of process.argv.slice(2)) {
  const lines = [];
  try {
    const bytes = readFileSync(file);
    const data = bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength);
    walk(new Qcow2(new KaitaiStream(data)), "", lines);
  } catch {
    lines.push(" !");
  }
  console.log(`${file}\n${lines.sort().join("\n")}\n`);
}
