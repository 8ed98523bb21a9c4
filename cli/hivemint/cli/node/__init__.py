"""A node: registering its operator, serving, reporting equivocation."""
