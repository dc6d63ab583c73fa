// The description qcow2.ksy as a model, with its checks or without, and what the compiler makes of it.

import { readFileSync } from "node:fs";
import compiler from "kaitai-struct-compiler";
import { parse } from "yaml";

const source = new URL("qcow2.ksy", import.meta.url);

/** The description as it is. */
export function described() {
  return parse(readFileSync(source, "utf8"));
}

/** The same description, without checks and without documentation. */
export function unchecked(node) {
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

/** Compile a model; return the text of each file by its name. */
export function compiled(language, model) {
  const importer = { importYaml: (name) => Promise.reject(new Error(`qcow2.ksy imports nothing, yet asks for ${name}`)) };
  return compiler.compile(language, model, importer, false);
}
