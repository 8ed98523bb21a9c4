"""The hivemint command and the local testnet."""
