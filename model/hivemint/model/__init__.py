"""A model on a disk: its architecture and block layout, its manifest, where it lies, how large it is."""
