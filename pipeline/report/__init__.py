"""A table as pages to look at, and what changed since another table."""
