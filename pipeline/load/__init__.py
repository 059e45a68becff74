"""Bytes to uint8 batches, in workers that may die."""
