"""Models of other libraries, trained by ordinary scripts, and photographs to add classes from."""
