"""What `wilson.ops` does in the code of others, each file runnable: `python -m examples.NAME` from the root."""
