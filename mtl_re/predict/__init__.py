"""Checkpoint(s) + rows → predictions files and triples."""
