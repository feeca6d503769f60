"""Times, memory and counts of the ops: `pytest benchmarks/ --benchmark-only` and `python -m benchmarks.report`."""
