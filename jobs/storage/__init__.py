"""Files here and in buckets: written whole, kept by one, asked for again."""
