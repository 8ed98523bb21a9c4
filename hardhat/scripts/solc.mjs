#!/usr/bin/env node
// The npm compiler with the manners of the native one, for tools that call a `solc` binary:
// `--version`, and `--standard-json` from stdin to stdout.
import { createRequire } from "node:module";

const solc = createRequire(import.meta.url)("solc");
if (process.argv.includes("--version")) {
  console.log(`solc, the solidity compiler commandline interface\nVersion: ${solc.version()}`);
} else if (process.argv.includes("--standard-json")) {
  const chunks = [];
  for await (const chunk of process.stdin) chunks.push(chunk);
  process.stdout.write(solc.compile(Buffer.concat(chunks).toString("utf8")));
} else {
  console.error("Only --version and --standard-json are understood.");
  process.exit(2);
}
