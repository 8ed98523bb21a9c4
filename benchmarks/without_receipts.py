"""The *off* side of `receipts.py`: the product with its metering replaced by nothing, in this process only.

    python benchmarks/without_receipts.py LEVEL node start ...      a node: any verb of the `hivemint` command
    python benchmarks/without_receipts.py LEVEL client_process      a client process of `crowd.py`

LEVEL `metering`: no row hashes, heads, digests, no signing and checking of receipts and vouchers. `payment`: the
journal's and the voucher book's transactions are gone too; what stays is what a swarm without payment would need as
well: links, sessions, batches, the same messages.
There is no such switch in the product; the functions are replaced here before anything else imports them.
"""

import runpy
import sys
from pathlib import Path
from typing import Any

import hivemint.ledger.books.voucher_book as vouchers
import hivemint.ledger.books.writer as writer
import hivemint.protocol.eip712 as signed
import hivemint.protocol.receipt as receipts
import hivemint.swarm.rows as rows

NO_HASH, NO_SIGNATURE = bytes(32), bytes(64)


def strip() -> None:
    """Replace the metering in this process."""
    signed.Receipt.digest = _digest  # type: ignore[method-assign]
    receipts.Leaf.head = lambda self: NO_HASH  # type: ignore[method-assign,assignment,return-value]
    receipts.following = _following
    receipts.sign_receipt = _sign_receipt
    receipts.match = lambda signed, expected: receipts.MatchedReceipt(signed)
    receipts.check_signature = _check_signature
    receipts.sign_voucher = _sign_voucher
    receipts.check_voucher = _check_voucher  # type: ignore[assignment]
    rows.row_hashes = lambda data, row_bytes: bytes(len(data) // row_bytes * len(NO_HASH))
    rows.tensor_hash = lambda hashes: NO_HASH  # type: ignore[assignment,return-value]


def close_books() -> None:
    """Write nothing down."""
    writer.GroupWriter.commit = _commit  # type: ignore[method-assign]
    vouchers.VoucherBook._change = _change  # type: ignore[method-assign]


def _digest(self: Any, domain: Any) -> Any:
    """Distinct for each step, as sessions look receipts up by it."""
    return self.session_id[:24] + self.step.to_bytes(8, "big")


def _following(previous: Any, leaf: Any) -> Any:
    return signed.Receipt(
        previous.node, previous.client, previous.session_id, leaf.step, previous.tokens + leaf.tokens, previous.head
    )


def _sign_receipt(domain: Any, receipt: Any, signer: Any) -> Any:
    return receipts.CheckedReceipt(receipt, NO_SIGNATURE, receipt.digest(domain))  # type: ignore[arg-type]


def _check_signature(domain: Any, signed: Any) -> Any:
    return receipts.CheckedReceipt(signed.body, signed.signature, signed.body.digest(domain))


def _sign_voucher(domain: Any, receipt: Any, total: Any, signer: Any) -> Any:
    voucher = signed.Voucher(receipt.digest, total)
    return receipts.CheckedVoucher(voucher, NO_SIGNATURE, signer.address)  # type: ignore[arg-type]


def _check_voucher(domain: Any, given: Any, receipt: Any, key: Any) -> Any:
    return receipts.CheckedVoucher(given.body, NO_SIGNATURE, key)  # type: ignore[arg-type]


async def _commit(self: Any, *changes: Any) -> None:
    return None


async def _believe(*_: Any) -> None:
    """A voucher without a signature proves nothing."""


_books: dict[tuple[int, str], vouchers.PromiseStanding] = {}


def _change(self: Any, changes: Any) -> Any:
    changed = []
    for node, rule in changes:
        before = _books.get((id(self), node), vouchers.PromiseStanding())
        after = _books[id(self), node] = rule(before)
        changed.append((before, after))
    return changed


if __name__ == "__main__":
    level = sys.argv.pop(1)
    strip()
    if level == "payment":
        close_books()
    if sys.argv[1:] == ["client_process"]:
        import hivemint.client.sessions.opening as handshake

        handshake.believe = _believe  # type: ignore[attr-defined, assignment]
        runpy.run_path(str(Path(__file__).with_name("client_process.py")), run_name="__main__")
    else:
        from hivemint.cli.main import run

        run()
