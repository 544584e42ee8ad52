"""Certificates: a verdict's proof as a file, and an independent program that checks it."""
