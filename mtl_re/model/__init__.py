"""The network: a shared encoder, a pooling, one linear head a decision; and how encoders and checkpoints are loaded."""
