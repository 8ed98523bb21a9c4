"""When donated work is paid, in the chain's terms and against the real contracts."""

from hivemint.contracts.bindings import Bindings
from hivemint.ledger.settlement.outlook import Outlook, PayOutlook
from hivemint.protocol.ids import PeerId
from hivemint.protocol.signing import Signer
from hivemint.protocol.text import utc
from support.chain import EPOCH, TEST_MODEL, TestChain

pytest_plugins = ["support.chain"]
COIN = 10**18


def test_each_state_says_its_reason_and_its_time() -> None:
    now = 100 * EPOCH + EPOCH // 2
    assert "not registered" in Outlook(now, EPOCH, registered=False).text()
    assert "no stake is bonded" in Outlook(now, EPOCH, registered=True).text()
    fresh = Outlook(now, EPOCH, registered=True, bonded=COIN)
    assert not fresh.pays
    assert fresh.first_credits_at == 103 * EPOCH
    assert f"first credits about {utc(103 * EPOCH, to_the_minute=True)}" in fresh.text()
    assert "from the next epoch, in 12 h" in fresh.text()
    counting = Outlook(now, EPOCH, registered=True, bonded=COIN, counting=COIN)
    assert counting.pays
    assert counting.first_credits_at == 102 * EPOCH
    assert "unpaid" not in counting.text()
    assert "mints nothing" in Outlook(now, EPOCH, registered=True, bonded=COIN, counting=COIN, rate=0).text()


def test_the_time_to_go_runs_on_while_the_chain_is_not_asked() -> None:
    one = Outlook(100 * EPOCH, EPOCH, registered=True, read_at=5000.0)
    assert one.to_go(5000.0) == EPOCH
    assert one.to_go(5000.0 + EPOCH + 10) == 0


async def test_a_new_node_is_paid_from_the_next_epoch_on(testchain: TestChain) -> None:
    operator, owner = Signer(b"\x71" * 32), testchain.signers[9]
    async with await Bindings.connect(testchain.network) as contracts:
        outlook = PayOutlook(contracts, operator.address, TEST_MODEL)
        assert not (await outlook.look()).registered
        await contracts.registry.register(owner, operator, PeerId(b"p"), testchain.network.domain, stake=COIN)
        found = await outlook.look()
        assert (found.registered, found.bonded, found.counting, found.pays) == (True, COIN, 0, False)
        epoch = testchain.next_epoch()
        later = await outlook.look()
        assert (later.epoch, later.counting, later.pays) == (epoch, COIN, True)
        assert found.first_credits_at == later.first_credits_at == (epoch + 2) * EPOCH
