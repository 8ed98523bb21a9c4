"""A wallet: its keystores, session keys, escrow accounts, orders and closing."""
