"""In what each setting is counted, for `hivemint config show`. An empty text: it is no number."""

COIN = "coin"
CREDITS = "HMC"
"""Such an amount is kept in wei and shown with this unit."""

UNITS: dict[str, dict[str, str]] = {
    "client": {
        "bid": "",
        "max_price": "HMC a token",
        "max_times_median": "times",
        "seconds_per_credit": "seconds",
        "margin": "times",
        "replay_margin": "times",
        "session_time": "seconds",
        "prefill_chunks": "chunks",
        "min_chunk": "tokens",
        "open_timeout": "seconds",
        "step_timeout": "seconds",
        "step_times": "times",
        "step_floor": "seconds",
        "slow_times": "times",
        "slow_floor": "seconds",
        "repairs": "nodes",
        "patience": "seconds",
        "wait_for_blocks": "seconds",
        "set_aside": "seconds",
        "max_ahead": "steps",
        "max_rows": "tokens",
        "max_session_tokens": "tokens",
        "max_backward": "tokens",
        "max_adapter": "bytes",
        "max_wait": "seconds",
    },
    "node": {
        "ask": "HMC a token and block",
        "ask_auto": "",
        "ask_floor": "HMC a token and block",
        "ask_ceiling": "HMC a token and block",
        "listen": "",
        "announce": "",
        "bootstrap": "",
        "precision": "",
        "wire": "",
        "device": "",
        "threads": "threads",
        "max_session_tokens": "tokens",
        "max_rows": "tokens",
        "max_backward": "tokens",
        "max_adapter": "bytes",
        "max_rank": "",
        "ahead": "steps",
        "batch_rows": "tokens",
        "donated_share": "of 1",
        "kv_bytes": "bytes",
        "keep_outputs": "bytes",
        "max_sessions": "sessions",
        "max_sessions_a_client": "sessions",
        "max_sessions_a_prefix": "sessions",
        "max_donated_sessions": "sessions",
        "max_donated_a_prefix": "sessions",
        "idle": "seconds",
        "park": "seconds",
        "donated_wait": "seconds",
        "settle_min": "HMC",
        "settle_every": "seconds",
        "dust": "HMC",
        "credit_price": "coin a credit",
        "max_fee": "gwei a gas",
        "max_tip": "gwei a gas",
        "coin_a_day": "coin",
        "metrics_port": "port",
        "drain": "seconds",
        "hung_times": "times",
        "hung_least": "seconds",
    },
}
"""By table and setting. tests/cli/test_config.py holds that none is left out."""


def is_amount(unit: str) -> bool:
    """Whether the value is in wei, of credits or of coin."""
    return unit.split(" ")[0] in (CREDITS, COIN)
