"""What all sides agree on: ids, errors, what is signed and how, receipts, credits, the network file, keys on a disk."""
