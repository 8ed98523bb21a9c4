"""Keys and values of the positions seen so far: in pages, or contiguous."""
