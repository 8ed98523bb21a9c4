"""What the command has to do with its terminal: streams, exit codes, completion, help."""
