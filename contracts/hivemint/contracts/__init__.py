"""What the chain knows: its endpoints, the contracts' bindings, deployment, verification."""
