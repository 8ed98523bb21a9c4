"""Generation and tuning with a model whose blocks are elsewhere: what runs on the client machine itself."""
