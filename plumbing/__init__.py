"""What a run needs and a reader of the method does not: see README.md in this folder."""
