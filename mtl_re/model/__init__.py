"""The network: a shared encoder, a pooling, a classifier for each head; how encoders and checkpoints are loaded."""
