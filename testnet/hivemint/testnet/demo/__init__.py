"""The life of a token, told with real numbers on a testnet of its own."""
