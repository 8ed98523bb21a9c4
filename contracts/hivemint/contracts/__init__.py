"""What is signed and what the chain knows: ids, EIP-712 structs, receipt states, bindings, deployment."""
