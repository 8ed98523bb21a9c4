"""What is kept for good: a node's journal of receipts and vouchers, a wallet's book of what it has promised."""
