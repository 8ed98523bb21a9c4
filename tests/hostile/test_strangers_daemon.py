"""The libp2p daemon dies under a busy host: one clear end, at once, and no task left with an error nobody took."""

import asyncio
import gc
import os
import signal
from typing import Any

import pytest
import uvloop

from hivemint.protocol.errors import LinkClosed, SwarmError
from hivemint.protocol.ids import ModelId
from hivemint.swarm.host import CONTROL, PUSH, Host, HostSettings
from hivemint.swarm.link import Link
from support.wire import NETWORK, hosts


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_a_killed_daemon_is_one_clear_end(run: Any) -> None:
    problems: list[dict[str, Any]] = []

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: problems.append(context))
        async with hosts(HostSettings(NETWORK)) as (boot,):
            await killed(boot)
        gc.collect()
        await asyncio.sleep(0)

    run(main())
    assert not problems


async def killed(boot: Host) -> None:
    async def keep(link: Link) -> None:
        await link.wait_closed()

    async def look_up(node: Host) -> None:
        while True:
            await node.find(ModelId(b"m" * 32), range(30))

    async with hosts(HostSettings(NETWORK, bootstrap=boot.addresses)) as (node,):
        await node.serve(CONTROL, keep)
        await node.serve(PUSH, keep)
        link = await boot.dial(node.peer_id, node.addresses, CONTROL)
        looking = asyncio.create_task(look_up(node))
        await asyncio.sleep(0.2)
        os.kill(node._daemon.child.pid, signal.SIGKILL)
        async with asyncio.timeout(10):
            assert "daemon has died: exit status -9" in await node.wait_ended()
            with pytest.raises(SwarmError, match=r"has ended|libp2p daemon"):
                await looking
            with pytest.raises(LinkClosed):
                await link.receive()


async def test_requests_that_their_asker_cancelled_are_forgotten() -> None:
    async with hosts(HostSettings(NETWORK)) as (host,):
        tasks = host._daemon._control._handler_tasks
        ended = asyncio.create_task(asyncio.sleep(0))
        await ended
        tasks["cancelled"] = ended
        host._daemon.tidy()
        assert not tasks


async def test_a_host_whose_heartbeat_fails_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dead heartbeat is noticed; one that looks after bootstrap peers is begun again."""
    async with hosts(HostSettings(NETWORK)) as (host,):
        runs = 0
        directory = host._directory
        assert directory is not None

        async def fails() -> None:
            nonlocal runs
            runs += 1
            if runs > 3:
                await asyncio.Event().wait()
            raise ValueError("a short list")

        monkeypatch.setattr(directory, "keep_joined", fails)
        joined = asyncio.create_task(host._keep_joined(directory))
        monkeypatch.setattr(host._gate, "forget_idle", None)
        monkeypatch.setattr("hivemint.swarm.host.HOUSEKEEPING", 0.0)
        async with asyncio.timeout(20):
            assert "heartbeat failed: TypeError" in await host.wait_ended()
            while runs < 4:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        joined.cancel()
