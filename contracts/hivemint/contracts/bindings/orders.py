"""What `Settlement` does for a wallet by its signature: whoever sends it pays the gas."""

from hivemint.contracts.bindings.base import Binding
from hivemint.contracts.bindings.token import NO_PERMIT, Permit
from hivemint.contracts.chain import Mined
from hivemint.protocol.ids import Address, Digest
from hivemint.protocol.orders import CancelThaw, Close, Fund, Order, Revoke, Thaw, Withdraw
from hivemint.protocol.signing import Signer

_KINDS: dict[type[Order | Close], int] = {Thaw: 0, CancelThaw: 1, Withdraw: 2, Revoke: 3, Close: 4}
"""The contract's enum."""
_CALLS: dict[type[Order], tuple[str, str]] = {
    Thaw: ("thawBySig", "Thawing the account"),
    CancelThaw: ("cancelThawBySig", "Cancelling the thaw"),
    Withdraw: ("withdrawBySig", "Withdrawing from the account"),
    Revoke: ("revokeBySig", "Revoking the key"),
}


class Orders(Binding):
    """A part of `Settlement`."""

    async def nonce(self, client: Address) -> int:
        """What the client's next order must carry."""
        return int(await self.read("nonces", client))

    async def send_order(self, sender: Signer, order: Order, signature: bytes) -> Mined:
        """`signature`: (r, vs) or (r, s, v) of the wallet's key, or what a contract wallet takes."""
        name, doing = _CALLS[type(order)]
        client, subject, _, deadline = order.message().values()
        return await self.chain.send(sender, self.function(name, client, subject, deadline, signature), doing=doing)

    async def send_fund(self, sender: Signer, order: Fund, signature: bytes, permit: Permit = NO_PERMIT) -> Mined:
        """permit: the wallet's, for the escrow to take the credits; without one the allowance must be there."""
        amounts = [int(amount) for amount in order.amounts]
        call = self.function(
            "fundBySig", order.client, list(order.nodes), amounts, permit.arguments(), order.deadline, signature
        )
        return await self.chain.send(sender, call, doing="Funding accounts")

    async def order_digest(self, order: Order | Close) -> Digest:
        return Digest(bytes(await self.read("orderDigest", _KINDS[type(order)], *order.message().values())))

    async def fund_digest(self, order: Fund) -> Digest:
        return Digest(bytes(await self.read("fundDigest", *order.message().values())))
