"""Train one step of a task: the loop, its log, and the state from which it resumes."""
