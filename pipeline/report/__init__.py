"""A table as pages to look at; what changed since another table."""
