"""Batches to committed rows, on this machine or on Ray."""
