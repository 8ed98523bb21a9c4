"""What the ledger's HTTP API answers. Amounts are wei as decimal text: a JSON number ends at 2^53."""

from typing import Annotated, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, PlainSerializer

WeiText = Annotated[int, PlainSerializer(str, return_type=str)]
HexText = Annotated[bytes, PlainSerializer(lambda value: "0x" + value.hex(), return_type=str)]
T = TypeVar("T")


class Document(BaseModel):
    """Base of all answers."""

    model_config = ConfigDict(frozen=True)


class Page(Document, Generic[T]):
    """One page of a list; `next` is the offset of the next one, None at the end."""

    items: list[T]
    next: int | None


class Balance(Document):
    """Who holds how many credits."""

    holder: str
    amount: WeiText


class EscrowRow(Document):
    """The account of one client at one node; `thaw_end` in seconds since 1970, 0 = open."""

    client: str
    node: str
    balance: WeiText
    collected: WeiText
    thaw_end: int


class NodeRow(Document):
    """A registered node. `bonded`, `unbonding` in wei of the coin; the rest of credits."""

    node: str
    owner: str
    payout: str
    peer_id_hash: HexText
    bonded: WeiText
    unbonding: WeiText
    retired: bool
    settled: WeiText
    minted: WeiText
    donated: WeiText


class SettlementRow(Document):
    """One settled account: `burned` of the client's escrow, `minted` to the node's payout, the rest is the fee."""

    block: int
    time: int
    transaction: HexText
    node: str
    client: str
    session: str
    step: int
    tokens: int
    burned: WeiText
    minted: WeiText
    fee: WeiText


class Withdrawal(Document):
    """What went from an account back to its client; `together`: at once, by a release of the node, not after a thaw."""

    block: int
    time: int
    transaction: HexText
    node: str
    client: str
    amount: WeiText
    together: bool


class ShareRow(Document):
    """A node's share of an epoch; `minted` is None until it was."""

    node: str
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


class OwnNode(Document):
    """The credit flow of an own node: signed -> countersigned -> settled -> minted, with reasons for what is not."""

    node: str
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


class ServedModel(Document):
    """The block map of one model; `missing`: ranges FIRST:END that nobody serves."""

    model: str
    blocks: int
    nodes: list[ServedNode]
    missing: list[str] = []
