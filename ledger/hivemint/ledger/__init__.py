"""Receipts and vouchers at rest and on their way to the chain: journal, settlement, indexer, API."""
