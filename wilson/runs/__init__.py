"""Whole runs: the steps of a task (`run`), the demo, grids of runs (`ablation`), and what they share.

`experiment` holds what all steps of a run need, `checks` refuses what cannot work before anything is trained, `folder`
guards the run's folder, `examples` writes the example pictures, `loading_speed` measures how fast images load.
"""
