"""The tests, in folders as the package has them; `support` holds what several of them share."""
