"""A network of its own on one machine: chain, contracts, bootstrap peer, nodes and ledger as child processes."""
