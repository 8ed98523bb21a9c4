"""What a contract's refusal means to whoever sent the transaction, and what to do then: by the name of its error."""

from typing import NamedTuple


class Meaning(NamedTuple):
    """`words` go before the error as the contract names it; "" where that says enough."""

    words: str
    next_step: str


_THAW = "`hivemint account thaw` begins to take credits out of an account; `hivemint account list` says how each stands"
_OWNER = "`hivemint node status --wallet NAME` says who owns a node; --owner NAME signs as that one"
_REGISTER = "`hivemint node register` enters a node; `hivemint swarm status` lists those that are registered"
_LATER = "wait until then, and do it again"

MEANINGS = {
    "NotThawing": Meaning("nothing of this account is on its way out", _THAW),
    "AlreadyThawing": Meaning("", "`hivemint account withdraw` when the thaw is over"),
    "StillThawing": Meaning("", "`hivemint account withdraw` after that; `hivemint account list` says when"),
    "NotOwner": Meaning("this wallet does not own the node, or nobody has registered it", _OWNER),
    "NotOperatorOrOwner": Meaning("this wallet neither runs the node nor owns it", _OWNER),
    "NotOffered": Meaning(
        "the node was not offered to this wallet", "its owner runs `hivemint node offer` with this wallet's address"
    ),
    "NotRegistered": Meaning("", _REGISTER),
    "AlreadyRegistered": Meaning("", _OWNER),
    "IsRetired": Meaning("an equivocation of this node was proved", "register a node with a new operator key"),
    "IsUnbonding": Meaning("the stake is leaving", "`hivemint node withdraw` after that, then bond anew"),
    "NothingBonded": Meaning("the node has no stake", "`hivemint node register --stake AMOUNT` bonds some"),
    "NothingToWithdraw": Meaning(
        "there is nothing to take out",
        "`hivemint node unbond` begins to take a stake out, and a reward comes from `hivemint node report`",
    ),
    "StakeTooSmall": Meaning("", "bond the minimum at least: `hivemint node register --stake AMOUNT`"),
    "BadKey": Meaning(
        "a wallet signs for itself anyway, so its own address is no session key",
        "name another key: `hivemint wallet create NAME` makes one",
    ),
    "KeyKnown": Meaning(
        "a key is authorized once, and not again after it was revoked",
        "name another key: `hivemint wallet create NAME` makes one",
    ),
    "BadValidity": Meaning("", "choose fewer --days, and check this machine's clock"),
    "OrderOver": Meaning("the order's time is over", "have it signed anew"),
    "BadOrder": Meaning("the signature is another wallet's, or of another order", "have it signed anew"),
    "FundingPaused": Meaning("deposits are paused for now", "try again later"),
    "MintsPaused": Meaning("mints are paused for now", "try again later"),
    "TooEarly": Meaning("", _LATER),
    "NothingClaimed": Meaning("", "`hivemint node claim` claims and mints what there is"),
}
"""Of errors that people meet who did nothing wrong; others are said as the contract names them."""
