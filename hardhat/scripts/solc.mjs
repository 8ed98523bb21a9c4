#!/usr/bin/env node
// The npm compiler behind solc's command line, as far as py-solc-x uses it: `--version` and `--standard-json`.
import solc from "solc";

if (process.argv.includes("--version")) {
  console.log(`solc, the solidity compiler commandline interface\nVersion: ${solc.version()}`);
} else {
  let input = "";
  for await (const chunk of process.stdin.setEncoding("utf8")) input += chunk;
  process.stdout.write(solc.compile(input));
}
