"""A file for each way in which other packages and their users meet this one: those that need a package skip without."""
