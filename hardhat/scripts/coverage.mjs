// Fails where the tests leave more than 5 % of the lines of a contract unrun. Run after `hardhat test solidity --coverage`.
// Branches: scripts/branches.sh.
import { readFileSync } from "node:fs";

const LEAST = 95;
let low = 0;
for (const record of readFileSync("coverage/lcov.info", "utf8").split("end_of_record")) {
  const file = /^SF:(src\/.*)$/m.exec(record)?.[1];
  if (!file) continue;
  const [found, hit] = ["LF", "LH"].map((key) => Number(new RegExp(`^${key}:(\\d+)$`, "m").exec(record)[1]));
  const percent = (100 * hit) / found;
  if (percent < LEAST) {
    console.error(`${file}: ${percent.toFixed(1)} % of its lines are run, ${LEAST} % are asked.`);
    low += 1;
  }
}
process.exit(low ? 1 : 0);
