"""A peer in a process of its own that sends every message back: `python echo_peer.py NETWORK [uvloop]`.

Prints its peer id (hex) and one address, then serves until it is killed.
"""

import asyncio
import sys

from hivemint.swarm.host import CONTROL, Host, HostSettings
from hivemint.swarm.link import Link
from hivemint.swarm.messages import Load, StepReceipt, Tensor


async def echo(link: Link) -> None:
    link.allow(Tensor, Tensor.LIMIT)
    link.allow(Load, Load.LIMIT)
    link.allow(StepReceipt, StepReceipt.LIMIT)
    while True:
        await link.send(await link.receive())


async def main(network: str) -> None:
    host = await Host.start(HostSettings(network))
    await host.serve(CONTROL, echo)
    print(host.peer_id.hex(), host.addresses[0], flush=True)  # noqa: T201
    await host.wait_ended()


if __name__ == "__main__":
    if "uvloop" in sys.argv:
        import uvloop

        uvloop.run(main(sys.argv[1]))
    else:
        asyncio.run(main(sys.argv[1]))
