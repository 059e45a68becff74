"""The Parquet products: what they hold, how they are merged, proven and mended."""
