"""Importers: one file a source format, each lowers to the integer network and nothing else."""
