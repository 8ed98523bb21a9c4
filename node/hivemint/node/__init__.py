"""A server of one span of a model's blocks."""
