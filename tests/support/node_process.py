"""A real node of a tiny model in a process of its own: `python node_process.py JSON`.

JSON: `model` (folder), `home` (folder of its peer key and books), `blocks` [first, end], `bootstrap` (addresses), `off`
(seconds by which its clock is wrong), `operator` (number of its key). Prints a JSON line with `peer`, `addresses` and
`pid`, then serves until it is ended.
"""

import asyncio
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from hivemint.ledger.books.journal import Journal
from hivemint.node.last_record import LastRecord
from hivemint.node.server import Kit, Node
from hivemint.node.settings import NodeSettings
from hivemint.node.span.span import Span
from hivemint.protocol.ids import BlockIndex
from hivemint.swarm.host import Host, HostSettings
from support.node_client import FakeFunds
from support.promises import DOMAIN, signer
from support.real_nodes import MODEL, NETWORK


async def main(asked: dict[str, Any], home: Path) -> None:
    off = asked.get("off", 0.0)
    settings = HostSettings(
        "test",
        identity=home / "peer.key",
        bootstrap=tuple(asked.get("bootstrap", ())),
        clock=lambda: time.time() + off,
    )
    host = await Host.start(settings)
    key = signer(asked.get("operator", 1001))
    journal = Journal.open(f"sqlite:///{home / 'journal.db'}", DOMAIN, key.address)
    first, end = asked["blocks"]
    span = Span.load(Path(asked["model"]), BlockIndex(first), BlockIndex(end))
    kit = Kit(NETWORK, MODEL, span, key, host, journal, FakeFunds(), last=LastRecord(home / "record.json"))
    node = await Node.start(kit, NodeSettings.load(ask=10, kv_bytes=1 << 22, max_rows=16, precision="fp32", drain=0.5))
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    print(json.dumps({"peer": host.peer_id.hex(), "addresses": host.addresses, "pid": os.getpid()}), flush=True)  # noqa: T201
    await node.run(stop)
    await node.close()
    await journal.close()
    await host.close()


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    folder = Path(asked["home"])
    folder.mkdir(exist_ok=True)
    asyncio.run(main(asked, folder))
