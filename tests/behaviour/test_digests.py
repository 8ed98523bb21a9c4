"""P13: Python and Solidity compute the same digests and m(c) on random inputs."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from eth_account.messages import encode_typed_data
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hivemint.contracts.bindings import Bindings
from hivemint.protocol.credits import mintable
from hivemint.protocol.eip712 import (
    MAX_UINT96,
    Delegation,
    Domain,
    Leave,
    Operator,
    Pardon,
    Receipt,
    Release,
    Session,
    Strike,
    Typed,
    Voucher,
)
from hivemint.protocol.ids import Digest
from hivemint.protocol.keccak import keccak
from hivemint.protocol.orders import CancelThaw, Close, Fund, Revoke, Thaw, Withdraw
from hivemint.protocol.signing import Signer, recover
from support.chain import TestChain

REAL_NODE = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
ADDRESS = st.binary(min_size=32, max_size=32).filter(any).map(lambda raw: Signer(keccak(raw)).address)
WORD = st.binary(min_size=32, max_size=32)
NUMBERS = {"uint32": 2**32 - 1, "uint64": 2**63 - 1, "uint96": MAX_UINT96, "uint256": 2**63 - 1}
ORDERS = (Thaw, CancelThaw, Withdraw, Revoke, Close)


def structs(kind: type[Typed]) -> st.SearchStrategy[Typed]:
    """Random values of every field, by the type string that both sides sign."""
    fields = kind.TYPE.partition("(")[2].rstrip(")").split(",")
    by_type: dict[str, st.SearchStrategy[Any]] = {"address": ADDRESS, "bytes32": WORD}
    by_type |= {name: st.integers(0, high) for name, high in NUMBERS.items()}
    by_type |= {f"{name}[]": st.lists(by_type[name], max_size=4).map(tuple) for name in ("address", "uint96")}
    by_type["bool"] = st.booleans()
    return st.tuples(*(by_type[entry.split(" ")[0]] for entry in fields)).map(lambda values: kind(*values))


def by_eth_account(struct: Typed, domain: Domain) -> Digest:
    """Independent of `Typed.digest`: the fields' types are taken from the type string, hashing is the library's."""
    name, _, inner = struct.TYPE.rstrip(")").partition("(")
    fields = [dict(zip(("type", "name"), part.split(" "), strict=True)) for part in inner.split(",")]
    values = dict(zip((one["name"] for one in fields), vars_of(struct), strict=True))
    signable = encode_typed_data(domain.typed(), {name: fields}, values)
    return Digest(keccak(b"\x19", signable.version, signable.header, signable.body))


def vars_of(struct: Typed) -> list[Any]:
    values = [getattr(struct, name) for name in struct.__struct_fields__]
    return [list(one) if isinstance(one, tuple) else one for one in values]


def on_chain(contracts: Bindings, kind: type[Typed]) -> Callable[[Any], Awaitable[bytes]]:
    views: dict[type[Typed], Callable[[Any], Awaitable[bytes]]] = {
        Delegation: contracts.settlement.delegation_digest,
        Receipt: contracts.settlement.receipt_digest,
        Release: contracts.settlement.release_digest,
        Fund: contracts.settlement.fund_digest,
        **dict.fromkeys(ORDERS, contracts.settlement.order_digest),
        Voucher: contracts.settlement.voucher_digest,
        Session: contracts.emission.session_digest,
        Operator: contracts.registry.operator_digest,
        Strike: contracts.disputes.strike_digest,
        Pardon: contracts.disputes.pardon_digest,
    }
    return views[kind]


@pytest.mark.parametrize(
    "kind", [Delegation, Session, Receipt, Voucher, Release, Operator, Strike, Pardon, Fund, *ORDERS]
)
@REAL_NODE
@given(data=st.data())
async def test_p13_digests_agree(
    contracts: Bindings, testchain: TestChain, kind: type[Typed], data: st.DataObject
) -> None:
    struct, domain = data.draw(structs(kind)), testchain.network.domain
    assert struct.digest(domain) == by_eth_account(struct, domain) == await on_chain(contracts, kind)(struct)


@REAL_NODE
@given(chain_id=st.integers(1, 2**32), settlement=ADDRESS, data=st.data())
def test_p13_digests_agree_in_every_domain(chain_id: int, settlement: Any, data: st.DataObject) -> None:
    domain = Domain(chain_id, settlement)
    for kind in (Receipt, Voucher, Leave):  # the two that are packed by hand, and the one that no contract takes
        struct = data.draw(structs(kind))
        assert struct.digest(domain) == by_eth_account(struct, domain)
        assert struct.digest(domain) != struct.digest(Domain(chain_id + 1, settlement))


@REAL_NODE
@given(collected=st.integers(0, MAX_UINT96))
async def test_p13_what_is_minted_agrees(contracts: Bindings, collected: int) -> None:
    assert mintable(collected) == await contracts.settlement.minted_for(collected)


@given(parts=st.lists(st.integers(0, 10**24), max_size=20))
def test_splitting_a_settlement_mints_the_same(parts: list[int]) -> None:
    collected = minted = 0
    for part in parts:
        minted += mintable(collected + part) - mintable(collected)
        collected += part
    assert minted == mintable(collected)
    assert collected - minted >= collected * 500 / 10_000 - 1 or collected > 2**53  # floats end there
    assert (collected - minted) * 10_000 >= collected * 500


@given(key=WORD.filter(any), digest=WORD)
def test_a_signature_recovers_to_its_signer(key: bytes, digest: bytes) -> None:
    signer = Signer(keccak(key))
    assert recover(Digest(digest), signer.sign(Digest(digest))) == signer.address
