"""What the ledger's HTTP API answers. Amounts are wei as decimal text: a JSON number ends at 2^53."""

from typing import Annotated, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, PlainSerializer, computed_field

from hivemint.protocol.node_name import node_name

WeiText = Annotated[int, PlainSerializer(str, return_type=str)]
HexText = Annotated[bytes, PlainSerializer(lambda value: "0x" + value.hex(), return_type=str)]
T = TypeVar("T")


class Document(BaseModel):
    """Base of all answers."""

    model_config = ConfigDict(frozen=True)


class OfNode(Document):
    """What tells of one node: its readable name stands beside the operator's address."""

    node: str

    @computed_field  # type: ignore[prop-decorator]
    @property
    def name(self) -> str:
        return node_name(self.node)


class Page(Document, Generic[T]):
    """One page of a list; `next` is the offset of the next one, None at the end."""

    items: list[T]
    next: int | None


class Balance(Document):
    """Who holds how many credits."""

    holder: str
    amount: WeiText


class EscrowRow(OfNode):
    """The account of one client at one node; `thaw_end` in seconds since 1970, 0 = open."""

    client: str
    balance: WeiText
    collected: WeiText
    thaw_end: int


class NodeRow(OfNode):
    """A registered node. `bonded`, `unbonding` in wei of the coin; the rest of credits."""

    owner: str
    payout: str
    peer_id_hash: HexText
    bonded: WeiText
    unbonding: WeiText
    retired: bool
    settled: WeiText
    minted: WeiText
    donated: WeiText


class SettlementRow(OfNode):
    """One settled account: `burned` of the client's escrow, `minted` to the node's payout, the rest is the fee."""

    block: int
    time: int
    transaction: HexText
    client: str
    session: str
    step: int
    tokens: int
    burned: WeiText
    minted: WeiText
    fee: WeiText


class Withdrawal(OfNode):
    """What went from an account back to its client; `together`: at once, by a release of the node, not after a thaw."""

    block: int
    time: int
    transaction: HexText
    client: str
    amount: WeiText
    together: bool


class ShareRow(OfNode):
    """A node's share of an epoch; `minted` is None until it was."""

    sessions: int
    units: WeiText
    weight: WeiText
    minted: WeiText | None


class Epoch(Document):
    """What paid work burned and minted during an epoch, and what donated work minted for it."""

    epoch: int
    begins: int
    settled: WeiText
    minted: WeiText
    fee: WeiText
    donated: WeiText
    shares: list[ShareRow]


class CreditTotals(Document):
    """All credits. `supply` is the sum of all balances, and must equal donated + minted - settled (promise P1)."""

    supply: WeiText
    settled: WeiText
    minted: WeiText
    fee: WeiText
    donated: WeiText
    escrow: WeiText
    supply_ok: bool


class IndexStatus(Document):
    """How far the index is. `trouble`: why it does not go on."""

    network: str
    chain_id: int
    indexed: int
    head: int
    trouble: str
    totals: CreditTotals


class OwnLane(Document):
    """One lane of an own node: tokens, and credits where the lane is paid."""

    sessions: int
    tokens_signed: int
    tokens_countersigned: int
    signed: WeiText
    countersigned: WeiText


class OwnNode(OfNode):
    """The credit flow of an own node: signed -> countersigned -> settled -> minted, with reasons for what is not."""

    paid: OwnLane
    donated: OwnLane
    promised: WeiText
    collected: WeiText
    minted: WeiText
    donated_minted: WeiText
    earned: WeiText
    """In all, for paid and for donated work; then of the last hour and the last day."""
    earned_hour: WeiText
    earned_day: WeiText
    reasons: list[str]


class OwnSession(Document):
    """A session of an own node, by its journal."""

    session: HexText
    client: str
    price: WeiText
    first_block: int
    end_block: int
    expiry: int
    signed_step: int
    signed_tokens: int
    countersigned_step: int | None
    countersigned_tokens: int
    claim: str


class ServedNode(Document):
    """A node as the DHT knows it: it serves blocks [first, end)."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    peer: str
    operator: str
    first: int
    end: int
    numerics: str = ""
    ask: WeiText = 0
    tokens_per_s: float = 0.0
    wait_paid_s: float = 0.0
    wait_donated_s: float = 0.0
    free_tokens: int = 0

    @computed_field  # type: ignore[prop-decorator]
    @property
    def name(self) -> str:
        return node_name(self.operator)


class ServedModel(Document):
    """The block map of one model; `missing`: ranges FIRST:END that nobody serves."""

    model: str
    blocks: int
    nodes: list[ServedNode]
    missing: list[str] = []
