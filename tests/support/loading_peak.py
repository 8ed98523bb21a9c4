"""Run as a program: loads a span and prints how far above its start the process's memory went, in bytes.

python -m support.loading_peak FOLDER PRECISION BLOCKS WARM_UP_FOLDER
"""

import re
import sys
from pathlib import Path

from hivemint.node.span import memory


def main(folder: str, precision: str, blocks: str, warm_up: str) -> int:
    memory.spare()
    from hivemint.node.span import int8
    from hivemint.node.span.span import Span
    from hivemint.protocol.ids import BlockIndex

    int8.refuse_unless_worth = lambda *_: None  # this is about memory
    Span.load(Path(warm_up), BlockIndex(0), BlockIndex(1), precision=precision)  # what libraries take is not the span's
    memory.trim()
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    span = Span.load(Path(folder), BlockIndex(0), BlockIndex(int(blocks)), precision=precision)
    assert span.end == int(blocks)
    return resident("VmHWM") - before


def resident(key: str) -> int:
    found = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) * 1024


if __name__ == "__main__":
    sys.stdout.write(str(main(*sys.argv[1:])))
