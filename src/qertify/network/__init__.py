"""The integer network: the one intermediate representation. Knows no file format, solver or runtime."""
