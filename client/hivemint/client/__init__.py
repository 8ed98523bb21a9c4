"""A wallet's way through the swarm: routing, sessions, generation."""
