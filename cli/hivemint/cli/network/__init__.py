"""How a network comes to be and how others come to it: a chain to reach, an invitation, the place for a shell."""
