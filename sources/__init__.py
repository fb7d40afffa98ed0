"""What comes from outside: files of questions, Hub data sets, the fields that others give them, and functions."""
