"""`--sign-only` and `hivemint account send-order`: a wallet without a coin orders, another one pays the gas."""

import asyncio
import json
import os
import pty
import subprocess
from pathlib import Path
from typing import Any

import pytest

from hivemint.cli.wallet import account, keys
from hivemint.contracts import order_file
from hivemint.contracts.bindings import Bindings
from hivemint.contracts.order_file import Closing, SignedOrder
from hivemint.protocol.eip712 import Release
from hivemint.protocol.errors import BadInput, ConfigError, HivemintError, ProofError
from hivemint.protocol.ids import ONE_CREDIT, Address, Credits
from hivemint.protocol.keystore import CHEAP_SCRYPT_N, Keystores
from hivemint.protocol.orders import Close
from hivemint.protocol.receipt import Countersigned, sign_voucher
from hivemint.protocol.signing import Signer
from support.chain import TestChain
from support.command import HIVEMINT
from support.credits import credits_for
from support.promises import Work
from support.verbs import error_of, told

pytest_plugins = ["support.verbs"]
pytestmark = pytest.mark.usefixtures("home")
POOR = Signer(b"\xa1" * 32)


async def _credits(testchain: TestChain) -> Signer:
    """POOR has credits and no coin. The node that may collect of it."""
    rich = Signer(b"\xa2" * 32)
    node = await credits_for(testchain, rich, 0xA4)
    async with await Bindings.connect(testchain.network) as contracts:
        await contracts.token.transfer(rich, POOR.address, 50 * ONE_CREDIT)
    return node


async def _read(testchain: TestChain, node: Address) -> tuple[int, int, int]:
    """Balance and thaw of the account, and the wallet's coin."""
    async with await Bindings.connect(testchain.network) as contracts:
        found = await contracts.settlement.account(POOR.address, node)
        return found.balance, found.thaw_end, await contracts.chain.balance(POOR.address)


def test_a_wallet_without_a_coin_does_all_of_it_by_signature(tmp_path: Path, testchain: TestChain) -> None:
    node = asyncio.run(_credits(testchain))
    Keystores().add("poor", POOR, "correct horse", n=CHEAP_SCRYPT_N)
    Keystores().add("payer", testchain.signers[9], "correct horse", n=CHEAP_SCRYPT_N)
    place = ["--network", str(testchain.network.path)]
    mine, payer = [*place, "--wallet", "poor"], [*place, "--wallet", "payer"]

    def sign(app: Any, *words: str) -> str:
        file = str(tmp_path / f"{'-'.join(words[:1])}-{len(list(tmp_path.iterdir()))}.json")
        assert told(app, *words, "--sign-only", file, *mine)["file"] == file
        return file

    def send(file: str) -> None:
        assert told(account.app, "send-order", file, *payer)["block"] > 0

    fund = sign(account.app, "fund", "2", "--node", node.address)
    assert asyncio.run(_read(testchain, node.address)) == (0, 0, 0), "nothing was sent"
    send(fund)
    assert asyncio.run(_read(testchain, node.address)) == (2 * ONE_CREDIT, 0, 0)
    assert "sent already" in error_of(account.app, "send-order", fund, *payer).what
    send(sign(account.app, "thaw", node.address))
    send(sign(account.app, "cancel", node.address))
    send(sign(account.app, "thaw", node.address))
    testchain.devchain.travel(4 * 86_400)
    send(sign(account.app, "withdraw", node.address))
    assert asyncio.run(_read(testchain, node.address)) == (0, 0, 0)
    hot = Signer(b"\xa3" * 32).address
    send(long(sign(keys.app, "authorize", hot)))
    send(sign(keys.app, "revoke", hot))
    send(sign(account.app, "fund", "2", "--node", node.address))
    refused_orders(tmp_path, testchain, node.address, mine, payer)
    closes_by_an_order(tmp_path, testchain, node, payer)


def long(file: str) -> str:
    """The same order with a signature of 65 bytes (r, s, v), as most wallets write them."""
    whole = json.loads(Path(file).read_text())
    short = bytes.fromhex(whole["signature"][2:])
    signature = short[:32] + bytes([short[32] & 0x7F]) + short[33:] + bytes([27 + (short[32] >> 7)])
    Path(file).write_text(json.dumps(whole | {"signature": "0x" + signature.hex()}))
    return file


def refused_orders(tmp_path: Path, testchain: TestChain, node: Address, mine: list[str], payer: list[str]) -> None:
    """Each is told in words before anybody pays for it."""
    file = tmp_path / "an-order.json"
    told(account.app, "thaw", node, "--sign-only", str(file), *mine)
    assert isinstance(error_of(account.app, "thaw", node, "--sign-only", str(file), *mine), ConfigError)
    for words in (("--nonce", "3"), ("--hours", "3")):
        assert isinstance(error_of(account.app, "thaw", node, *words, *mine), BadInput)
    for hours in ("0", "0.0000001", "nan", "inf", "9000"):
        told_hours = ["thaw", node, "--sign-only", str(tmp_path / "x"), "--hours", hours]
        assert "hours" in error_of(account.app, *told_hours, *mine).what
    whole = json.loads(file.read_text())
    odd = tmp_path / "odd.json"

    def refused(changes: dict[str, Any], **order: Any) -> HivemintError:
        odd.write_text(json.dumps({**whole, **changes, "order": {**whole["order"], **order}}))
        return error_of(account.app, "send-order", str(odd), *payer)

    assert "chain 7" in refused({"chain_id": 7}).why
    other = testchain.signers[3].address
    for changed in ({"node": other}, {"client": other}, {"deadline": whole["order"]["deadline"] + 1}):
        assert isinstance(refused({}, **changed), ProofError)
    assert isinstance(refused({"kind": "CancelThaw"}), ProofError)
    damaged: list[dict[str, Any]] = [
        {"kind": "Gift"},
        {"signature": "0xzz"},
        {"more": 1},
        {"settlement": "0x1"},
        {"release": {}},
    ]
    for one in damaged:
        assert isinstance(refused(one), BadInput)
    ahead, over = str(tmp_path / "ahead.json"), str(tmp_path / "over.json")
    told(account.app, "thaw", node, "--sign-only", ahead, "--nonce", "99", *mine)
    assert "earlier order" in error_of(account.app, "send-order", ahead, *payer).what
    told(account.app, "fund", "1000", "--node", node, "--sign-only", str(tmp_path / "rich.json"), *mine)
    error = error_of(account.app, "send-order", str(tmp_path / "rich.json"), *payer)
    assert "1,000 HMC in all" in error.why
    told(account.app, "thaw", node, "--sign-only", over, "--hours", "0.01", *mine)
    testchain.devchain.travel(60)
    assert "is over" in error_of(account.app, "send-order", over, *payer).what


def closes_by_an_order(tmp_path: Path, testchain: TestChain, node: Signer, payer: list[str]) -> None:
    """The node's release and what is to be settled travel with it."""
    domain, now = testchain.network.domain, testchain.devchain.time()
    receipt = Work(POOR, node, domain=domain).step(70)
    pair = Countersigned(receipt, sign_voucher(domain, receipt, Credits(ONE_CREDIT), POOR))
    release = Release(node.address, POOR.address, Credits(ONE_CREDIT), now + 1800)
    nonce = asyncio.run(_nonce(testchain))
    order = Close(POOR.address, node.address, nonce, now + 1800)
    closing = Closing(release, release.sign(domain, node), (pair,))
    signed = SignedOrder(domain, order, order.sign(domain, POOR), closing=closing)
    assert order_file.from_json(order_file.to_json(signed)) == signed
    file = tmp_path / "close.json"
    order_file.write(file, signed)
    told(account.app, "send-order", str(file), *payer)
    balance, thaw_end, coin = asyncio.run(_read(testchain, node.address))
    assert (balance, thaw_end, coin) == (0, 0, 0)
    assert asyncio.run(_credits_of(testchain)) == 49 * ONE_CREDIT


async def _nonce(testchain: TestChain) -> int:
    async with await Bindings.connect(testchain.network) as contracts:
        return await contracts.settlement.nonce(POOR.address)


async def _credits_of(testchain: TestChain) -> int:
    async with await Bindings.connect(testchain.network) as contracts:
        return int(await contracts.token.balance(POOR.address))


def test_a_long_signature_is_told_from_a_forged_one() -> None:
    """65 bytes (r, s, v), as most wallets write them."""
    from hivemint.protocol.orders import Thaw
    from support.promises import DOMAIN

    order = Thaw(POOR.address, POOR.address, 0, 2**40)
    short = order.sign(DOMAIN, POOR)
    long = short[:32] + bytes([short[32] & 0x7F]) + short[33:] + bytes([27 + (short[32] >> 7)])
    assert SignedOrder(DOMAIN, order, long).signer() == POOR.address
    for odd in (long[:64] + b"\0", long[:64] + b"\x1d", short[:63], b"", long[:32] + b"\xff" + long[33:]):
        with pytest.raises(ProofError):
            SignedOrder(DOMAIN, order, odd).signer()


def test_an_order_for_stdout_comes_alone_though_it_is_asked_for_at_a_terminal(
    tmp_path: Path, testchain: TestChain
) -> None:
    """`--sign-only - > order.json`: what is shown and asked goes to the terminal, and only the order into the file."""
    rich = Signer(b"\xa6" * 32)
    node = asyncio.run(credits_for(testchain, rich, 0xA8))
    Keystores().add("rich", rich, "correct horse", n=CHEAP_SCRYPT_N)
    words = ["fund", "2", "--node", node.address, "--sign-only", "-"]
    place = ["--network", str(testchain.network.path), "--wallet", "rich"]
    ours, theirs = pty.openpty()
    try:
        os.write(ours, b"y\n")
        command = [HIVEMINT, "account", *words, *place]
        done = subprocess.run(command, stdin=theirs, capture_output=True, text=True, timeout=120, check=False)
    finally:
        os.close(ours)
        os.close(theirs)
    assert done.returncode == 0, done
    assert done.stdout.startswith("{"), done
    (tmp_path / "order.json").write_text(done.stdout)
    assert order_file.read(tmp_path / "order.json").kind == "Fund"
    assert "Deposit? [y/N]" in done.stderr
    assert "gets 2 HMC" in done.stderr
