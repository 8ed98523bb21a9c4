"""Pipelines over open sessions: steps on their way, their vouchers and proofs, whom a fault is laid on, training."""
