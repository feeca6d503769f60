"""The kinds of data sets, one file each, behind the interface in `base`; `views` select or relabel their images."""
