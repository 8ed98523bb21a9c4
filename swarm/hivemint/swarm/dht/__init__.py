"""The swarm's directory: node records in the DHT, what others may ask of it, and which peers were met before."""
