"""The command line, `dekag`: everything that a user can start from a terminal."""
