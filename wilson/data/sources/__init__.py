"""The kinds of data sets, one file each; `base` says what each of them offers."""
