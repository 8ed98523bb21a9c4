"""The steps of one session: what is taken, where its input comes from, how it is computed, signed and answered."""
