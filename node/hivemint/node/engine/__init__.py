"""Who computes when: the scheduler, the seats, the engine that runs batches on a device, and what watches it."""
