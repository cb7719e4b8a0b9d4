"""What makes a pass cheaper on a CPU: packed sequences, dropout from fewer random numbers, the memory allocator."""
