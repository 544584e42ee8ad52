"""Pieces of work, and where they are worked on: this process, other processes of this machine, or a cluster."""
