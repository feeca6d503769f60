"""Priors of new classes from models outside: folders of maps (`head`, `clip`) and tables of names (`names`)."""
