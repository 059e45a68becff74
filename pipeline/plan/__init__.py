"""What a run is to do, and what it may: which model, which images, and which labels may be lost."""
