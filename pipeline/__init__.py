"""The dataflow, from folders of photos to a Parquet table of labels."""
