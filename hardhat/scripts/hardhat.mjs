// Runs this project's Hardhat with the Node.js that runs this script.
import { spawnSync } from "node:child_process";
import { fileURLToPath } from "node:url";

export const ROOT = fileURLToPath(new URL("..", import.meta.url));
const CLI = fileURLToPath(new URL("../node_modules/hardhat/dist/src/cli.js", import.meta.url));

// The library's own warnings about a future keyword, six lines each; ours are shown.
const NOISE = /Warning: "at" will be promoted[^\n]*\n\s+--> [^\n]*node_modules[^\n]*\n(?:\s*\d* *\|[^\n]*\n)+\n*/g;

/** Runs `hardhat ARGS`, shows what it says, and ends this process if it fails. */
export function hardhat(...args) {
  const { status, stdout, stderr, error } = spawnSync(process.execPath, [CLI, ...args], {
    cwd: ROOT,
    encoding: "utf8",
    maxBuffer: 1 << 28,
  });
  if (error) throw error;
  process.stdout.write(stdout.replace(NOISE, "").replace(/\n{3,}/g, "\n\n"));
  process.stderr.write(stderr.replace(NOISE, ""));
  if (status !== 0) process.exit(status ?? 1);
}
