"""Anyone's files to our tensors, and to what they mean."""
