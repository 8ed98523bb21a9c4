"""Which blocks a node serves: what it measures, the rule that places it, and the look whether it moves."""
