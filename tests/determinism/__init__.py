"""The same upload, spec and seed give the same bytes: in two processes, and before and after a change of this code."""
