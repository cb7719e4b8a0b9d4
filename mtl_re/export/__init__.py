"""A checkpoint → one directory for PyTorch, ONNX Runtime and the hub."""
