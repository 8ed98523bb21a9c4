"""The credit token (HMC), an ERC-20 with permit."""

from dataclasses import dataclass

from eth_account.messages import encode_typed_data
from web3.types import BlockIdentifier

from hivemint.contracts.bindings.base import Binding
from hivemint.contracts.chain import Mined
from hivemint.protocol.ids import Address, Credits, Digest
from hivemint.protocol.keccak import keccak
from hivemint.protocol.signing import Signer

_PERMIT = {
    "Permit": [
        {"name": "owner", "type": "address"},
        {"name": "spender", "type": "address"},
        {"name": "value", "type": "uint256"},
        {"name": "nonce", "type": "uint256"},
        {"name": "deadline", "type": "uint256"},
    ]
}


@dataclass(frozen=True, slots=True)
class Permit:
    """An ERC-2612 permit; `deadline` in seconds since 1970, 0 = none."""

    value: int
    deadline: int
    v: int
    r: bytes
    s: bytes

    def arguments(self) -> tuple[int, int, int, bytes, bytes]:
        return self.value, self.deadline, self.v, self.r, self.s


NO_PERMIT = Permit(0, 0, 0, bytes(32), bytes(32))


class Token(Binding):
    NAME = "CreditToken"

    async def balance(self, owner: Address, block: BlockIdentifier = "latest") -> Credits:
        return Credits(await self.read("balanceOf", owner, block=block))

    async def supply(self, block: BlockIdentifier = "latest") -> Credits:
        """All credits that exist."""
        return Credits(await self.read("totalSupply", block=block))

    async def allowance(self, owner: Address, spender: Address) -> int:
        return int(await self.read("allowance", owner, spender))

    async def approve(self, owner: Signer, spender: Address, amount: int) -> Mined:
        return await self.chain.send(owner, self.function("approve", spender, amount), doing="Approving")

    async def transfer(self, owner: Signer, to: Address, amount: int) -> Mined:
        return await self.chain.send(owner, self.function("transfer", to, amount), doing="Sending credits")

    async def permit(self, owner: Signer, spender: Address, value: int, *, seconds: int = 3600) -> Permit:
        """Sign a permit that lasts `seconds` by the chain's clock; nothing is sent."""
        nonce = await self.read("nonces", owner.address)
        deadline = await self.chain.time() + seconds
        domain = {
            "name": "Hivemint Credit",
            "version": "1",
            "chainId": self.chain.chain_id,
            "verifyingContract": self.address,
        }
        message = {
            "owner": owner.address,
            "spender": spender,
            "value": value,
            "nonce": nonce,
            "deadline": deadline,
        }
        signable = encode_typed_data(domain, _PERMIT, message)
        signature = owner.sign(Digest(keccak(b"\x19", signable.version, signable.header, signable.body)))
        s = bytes([signature[32] & 0x7F]) + signature[33:]
        return Permit(value, deadline, 27 + (signature[32] >> 7), signature[:32], s)
