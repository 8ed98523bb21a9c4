"""The first credits of a wallet on a chain of the tests: there is no premint."""

from hivemint.contracts.bindings import Bindings, Donation
from hivemint.contracts.chain import Transfer
from hivemint.protocol.ids import ONE_CREDIT, PeerId
from hivemint.protocol.signing import Signer
from support.chain import EPOCH, TEST_MODEL, TestChain
from support.sessions import countersign, make_session

COIN = 10**18


async def credits_for(testchain: TestChain, client: Signer, number: int = 0x77) -> Signer:
    """100 credits, and coin for gas. They come from donated work alone: register, serve for free, claim, mint.

    Gives the node. `number`: another owner and node for each call on one chain.
    """
    owner, node = Signer(bytes([number]) * 32), Signer(bytes([number + 1]) * 32)
    domain = testchain.network.domain
    async with await Bindings.connect(testchain.network) as contracts:
        for one in (owner, client):
            payment = Transfer(contracts.chain, one.address)
            await contracts.chain.send(testchain.signers[1], payment, doing="Paying", value=60 * COIN)
        await contracts.registry.register(owner, node, PeerId(b"a peer"), domain, stake=50 * COIN)
        epoch = testchain.next_epoch()
        session = make_session(client, node, model=TEST_MODEL, expiry=epoch * EPOCH + 60)
        donation = Donation(session, countersign(domain, session, node, client, tokens=10**9))
        testchain.next_epoch()
        await contracts.emission.claim(owner, node.address, epoch, [donation])
        testchain.next_epoch()
        await contracts.emission.mint(owner, node.address, epoch)
        await contracts.token.transfer(owner, client.address, 100 * ONE_CREDIT)
    return node
