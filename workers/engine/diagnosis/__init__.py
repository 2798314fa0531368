"""What the numbers of a model say: activations, saturation, sensitivity, calibration, and what would mend each.

One file an analysis; each is a function from (program, layers, data) to values of the report. None changes the program.
"""
