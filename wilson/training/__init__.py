"""Training one step of a task: the loop, the state that it can be resumed from, and the log that it leaves."""
