"""A node whose clock is off, or that is listed twice, says so in its status."""

import re
import time
from dataclasses import dataclass, replace

import msgspec
import pytest

from hivemint.node.self_check import CLOCK, IDENTITY, SelfCheck
from hivemint.node.supervise import Supervisor
from hivemint.protocol.errors import ChainError
from hivemint.protocol.node_name import node_name
from hivemint.swarm.host import Host, HostSettings
from hivemint.swarm.identity import peer_text
from hivemint.swarm.records import sign_record
from support.node_records import MODEL, OPERATOR, record
from support.wire import NETWORK, hosts

MINUTES = 300.0


@dataclass
class Chain:
    """One that mines each second, or that is away."""

    away: bool = False

    async def time(self) -> int:
        if self.away:
            raise ChainError("The chain does not answer")
        return int(time.time())


def check_of(host: Host, chain: Chain, supervisor: Supervisor) -> SelfCheck:
    return SelfCheck(host, chain, supervisor, MODEL, range(30), OPERATOR.address)


@pytest.mark.parametrize(("off", "side"), [(MINUTES, "ahead"), (-MINUTES, "behind")])
@pytest.mark.parametrize("away", [False, True])
async def test_a_clock_that_is_off_is_told_and_then_well(off: float, side: str, away: bool) -> None:
    wrong = [off]
    async with hosts(HostSettings(NETWORK)) as (boot,):
        joined = HostSettings(NETWORK, bootstrap=boot.addresses)
        clock = replace(joined, clock=lambda: time.time() + wrong[0])
        async with hosts(joined, clock) as (_, host):
            supervisor = Supervisor()
            check = check_of(host, Chain(away), supervisor)
            await check.look_at_clock()
            told = supervisor.trouble[CLOCK]
            assert f"it is {side}" in told
            assert (re.search(r"from the chain's by (5 min \d|4 min 5\d) s", told) is None) == away
            wrong[0] = 0.0
            assert host.clock.stepped
            directory = host._directory
            assert directory is not None
            await directory._measure()
            await check.look_at_clock()
            assert CLOCK not in supervisor.trouble


async def test_another_peer_under_the_own_operator_is_told_by_name() -> None:
    async with hosts(HostSettings(NETWORK)) as (boot,):
        joined = HostSettings(NETWORK, bootstrap=boot.addresses)
        async with hosts(joined, joined) as (old, new):
            supervisor = Supervisor()
            check = check_of(new, Chain(), supervisor)
            for host, blocks in ((old, (0, 15)), (new, (15, 30))):
                assert IDENTITY not in supervisor.trouble
                said = msgspec.structs.replace(record(key=host.key, blocks=blocks), expires=host.clock.now() + 45)
                await host.publish(sign_record(said, OPERATOR, host.key))
                await check.look_at_listing()
            told = supervisor.trouble[IDENTITY]
            assert told.startswith(f"node {node_name(OPERATOR.address)} is listed with 2 peer ids")
            for part in (f"{peer_text(old.peer_id)} (blocks 0:15)", f"{peer_text(new.peer_id)} (blocks 15:30)"):
                assert part in told
