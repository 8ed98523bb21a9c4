"""What node and client share on the wire: messages, DHT records, the libp2p adapter."""
