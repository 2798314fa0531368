"""Fewbit beside the quantizers one would use instead: size, time, closeness to float, all from one run.

Each table is measured in a process of its own (``python -m benchmarks.peers``), which hands its rows back as JSON in a
file. What the tables mean, and what they do not, stands in their captions.
"""
