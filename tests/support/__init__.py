"""What tests share: cases of the ops, tolerances, tiny data sets, tiny runs, several processes."""
