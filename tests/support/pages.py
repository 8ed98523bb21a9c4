"""A document as a program: its fenced blocks in their order, run in the shell of whoever follows it.

An HTML comment right before a block says what a test must know and a reader need not:

    <!-- not run: REASON -->             as few as possible
    <!-- until "TEXT": REASON -->        its last command goes on running; the next block waits for "TEXT", with its
                                        quotes, in its output
    <!-- on: MACHINE -->                 whose shell it is, where a page has several
"""

import os
import re
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_BLOCK = re.compile(r"((?:^<!--.*?-->\n)*)^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_NOTE = re.compile(r"<!-- *(not run|until|on)\b:? *(?:\"([^\"]*)\")?:? *(.*?) *-->")


@dataclass(frozen=True)
class Block:
    """`line` of the document, for whoever has to mend it. `until`: what tells that its last command is up."""

    language: str
    text: str
    line: int
    not_run: str = ""
    until: str = ""
    machine: str = ""


def blocks(page: Path) -> list[Block]:
    """All fenced blocks of a document."""
    document, found = page.read_text(), []
    for match in _BLOCK.finditer(document):
        notes = {kind: (quoted, rest) for kind, quoted, rest in _NOTE.findall(match[1])}
        found.append(
            Block(
                match[2],
                match[3],
                document.count("\n", 0, match.start(3)),
                not_run=notes.get("not run", ("", ""))[1],
                until=notes.get("until", ("", ""))[0],
                machine=notes.get("on", ("", ""))[1],
            )
        )
    return found


class Shell:
    """One bash in one folder, in which block after block runs; the first command that fails fails its block.

    `before`: what starts bash, such as `ip netns exec NAME`.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str], before: Sequence[str] = ()) -> None:
        self.folder, self._count, self._running = folder, 0, list[tuple[int, Path]]()
        self._scratch = folder / ".blocks"
        self._scratch.mkdir(parents=True)
        self._bash = subprocess.Popen(
            [*before, "bash", "--noprofile", "--norc"],
            cwd=folder,
            env=dict(environment),
            stdin=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, block: Block, within: float = 400.0) -> str:
        """Its output. Raises AssertionError with the output if a command fails, or `within` seconds have passed."""
        self._count += 1
        stem = self._scratch / f"{self._count:02}"
        script, output, status = stem.with_suffix(".sh"), stem.with_suffix(".out"), stem.with_suffix(".rc")
        script.write_text(self._script(block, stem))
        assert self._bash.stdin is not None
        # A block that fails ends this shell (errexit); the trap says with what.
        run = f". {script} > {output} 2>&1 < /dev/null"
        self._bash.stdin.write(f"trap 'echo $? > {status}' EXIT; set -eo pipefail; {run}; echo 0 > {status}\n")
        self._bash.stdin.flush()
        end = time.monotonic() + within
        while not (status.is_file() and status.read_text().strip()):
            assert time.monotonic() < end, f"line {block.line} takes longer than {within:.0f} s:\n{_tail(output)}"
            time.sleep(0.05)
        code = status.read_text().strip()
        assert code == "0", f"line {block.line} ended with {code}:\n{block.text}\n{_tail(output)}"
        if block.until:
            self._running.append((int(stem.with_suffix(".pid").read_text()), output))
            while f'"{block.until}"' not in output.read_text(errors="replace"):
                assert _alive(self._running[-1][0]), f"line {block.line} has ended:\n{_tail(output)}"
                assert time.monotonic() < end, f"line {block.line} is not up:\n{_tail(output)}"
                time.sleep(0.1)
        return output.read_text(errors="replace")

    def _script(self, block: Block, stem: Path) -> str:
        if block.language == "python":
            program = stem.with_suffix(".py")
            program.write_text(block.text)
            return f"python {program}\n"
        if not block.until:
            return block.text
        *before, last = _commands(block.text)
        return "\n".join((*before, f"{last} & echo $! > {stem.with_suffix('.pid')}", ""))

    def interrupt(self, within: float = 60.0) -> str:
        """Ctrl-C for what was started last and goes on running; its output. Raises AssertionError if it stays."""
        pid, output = self._running.pop()
        os.kill(pid, signal.SIGINT)
        end = time.monotonic() + within
        while _alive(pid):
            assert time.monotonic() < end, f"process {pid} does not end:\n{_tail(output)}"
            time.sleep(0.1)
        return output.read_text(errors="replace")

    def close(self) -> None:
        """End what still runs, and the shell."""
        while self._running:
            with suppress(AssertionError, ProcessLookupError):
                self.interrupt(20.0)
        with suppress(ProcessLookupError):
            os.killpg(self._bash.pid, signal.SIGKILL)
        self._bash.wait()
        if self._bash.stdin is not None:
            with suppress(BrokenPipeError):
                self._bash.stdin.close()


def _commands(text: str) -> list[str]:
    """A block's commands without its comments; a line that ends with a backslash goes on."""
    joined = text.replace("\\\n", " ").splitlines()
    return [line.split("  #")[0].rstrip() for line in joined if line.strip() and not line.startswith("#")]


def _alive(pid: int) -> bool:
    """Whether it runs: bash keeps its ended children as zombies for a while."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _tail(output: Path) -> str:
    return output.read_text(errors="replace")[-3000:] if output.is_file() else "no output"
