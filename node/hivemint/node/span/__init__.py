"""The blocks of a model that this node serves: loaded, packed into batches, computed."""
