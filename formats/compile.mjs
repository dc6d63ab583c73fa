// Compiles qcow2.ksy to three Python modules in qcow2c/attest/_kaitai:
//
//   qcow2.py            as the Kaitai Struct compiler makes it, with every check that `valid` asks for;
//   qcow2_unchecked.py  the same without `valid`, so that the fields of a damaged image can be read and compared;
//   names.py            what the specification calls the fields that have another name there (`-orig-id`).
//
// `node compile.mjs` writes them; `node compile.mjs --check` compares them with the files that are checked in, compiles
// the description to every other target of the compiler as well, and fails on any difference and any target that cannot
// be compiled to. Run `npm ci` in this directory first; `make ksy` and `make ksy-check` do both.

import { readFileSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import compiler from "kaitai-struct-compiler";
import { compiled, described, unchecked } from "./description.mjs";

const target = new URL("../qcow2c/attest/_kaitai/", import.meta.url);

/** The names that `-orig-id` gives, by the names that the description has instead. */
function originalNames(model, found = new Map()) {
  for (const [key, value] of Object.entries(model ?? {})) {
    if (typeof value !== "object" || value === null) {
      continue;
    }
    const name = Array.isArray(model) || "id" in value ? value.id : key;
    if ("-orig-id" in value && found.has(name) && found.get(name) !== value["-orig-id"]) {
      throw new Error(`${name} stands for two names of the specification`);
    }
    if ("-orig-id" in value) {
      found.set(name, value["-orig-id"]);
    }
    originalNames(value, found);
  }
  return found;
}

function namesModule({ seq, instances, types }) {
  const lines = [...originalNames({ seq, instances, types })].sort().map(([name, original]) => `    "${name}": "${original}",\n`);
  return (
    "# This is a generated file! Please edit source .ksy file and use `make ksy` to rebuild\n\n" +
    `ORIGINAL_NAMES = {\n${lines.join("")}}\n`
  );
}

async function modules(model) {
  return {
    "qcow2.py": (await compiled("python", model))["qcow2.py"],
    "qcow2_unchecked.py": (await compiled("python", unchecked(model)))["qcow2.py"],
    "names.py": namesModule(model),
  };
}

/** Compile to each target; return how many cannot be compiled to. */
async function failedTargets(model) {
  let failed = 0;
  for (const language of compiler.languages) {
    try {
      await compiled(language, model);
    } catch (error) {
      console.error(`formats/qcow2.ksy does not compile to ${language}: ${error.message ?? error}`);
      failed += 1;
    }
  }
  return failed;
}

async function main(check) {
  const model = described();
  let differences = check ? await failedTargets(model) : 0;
  for (const [name, text] of Object.entries(await modules(model))) {
    const file = new URL(name, target);
    if (!check) {
      writeFileSync(file, text);
    } else if (text !== readFileSync(file, "utf8")) {
      console.error(`${fileURLToPath(file)} is not what formats/qcow2.ksy compiles to: run \`make ksy\``);
      differences += 1;
    }
  }
  return differences === 0 ? 0 : 1;
}

process.exitCode = await main(process.argv.includes("--check"));
