"""`make bench`: mtl-re beside what people would use instead, and beside the bare encoder, as ratios in one run.

`python -m experiments.benchmarks --help` names the pieces. Every measurement is a process of its own (its CPU time and
peak memory are its own), contenders take turns, and all get the same rows, token ids, precision, batch and threads.
"""
