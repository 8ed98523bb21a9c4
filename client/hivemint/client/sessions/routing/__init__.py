"""How a route is chosen: the nodes as planning sees them, costs, the cheapest path, who is left out."""
