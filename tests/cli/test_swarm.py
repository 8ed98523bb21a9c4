"""`hivemint swarm bootstrap`: what it refuses before a peer is started."""

import pytest

from hivemint.cli import swarm
from support.verbs import error_of


@pytest.mark.parametrize("flag", ["--listen", "--announce"])
def test_a_bootstrap_peer_refuses_such_addresses_too(flag: str) -> None:
    refused = error_of(swarm.app, "bootstrap", "--name", "a-network", flag, "127.0.0.1:4001")
    assert flag in refused.what
    assert "write /ip4/127.0.0.1/tcp/4001" in refused.why
