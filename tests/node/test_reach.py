"""Who can reach a node, said honestly, and with the fix."""

from hivemint.node.reach import best_fix, reach, reaches

PEER = "/p2p/12D3KooWPjceQrSwdWXPyLLeABRXmuqt69Rg3sBYbU1Nft9HyQ6X"


def test_loopback_names_the_option_that_opens_it() -> None:
    found = reaches([f"/ip4/127.0.0.1/tcp/7001{PEER}"])
    assert found[0].text == "this machine alone"
    assert best_fix(found) == "--listen /ip4/0.0.0.0/tcp/7001, to be reached by other machines"
    assert "tcp/4001" in reach("/ip4/127.0.0.1/tcp/0").fix


def test_a_private_address_names_the_port_to_forward_and_what_to_announce() -> None:
    found = reaches([f"/ip4/127.0.0.1/tcp/7001{PEER}", f"/ip4/192.168.1.5/tcp/7001{PEER}"])
    fix = best_fix(found)
    assert "forward port 7001" in fix
    assert "--announce /ip4/YOUR-PUBLIC-IP/tcp/7001" in fix


def test_a_public_address_is_not_said_to_work() -> None:
    found = reaches([f"/ip4/8.8.8.8/tcp/7001{PEER}"])
    assert "not checked from outside" in found[0].text
    assert best_fix(found) == ""
    assert "not checked" in reach("/dns4/node.example/tcp/1").text
    assert "relay" in reach(f"/ip4/8.8.8.8/tcp/1{PEER}/p2p-circuit").text


def test_a_client_from_outside_is_proof() -> None:
    found = reaches([f"/ip4/192.168.1.5/tcp/7001{PEER}"], "203.0.113.0/24")
    assert "reached from outside (203.0.113.0/24)" in found[0].text
    assert best_fix(found) == ""
