"""Examples → marked text → token ids, positions and targets → padded batches."""
