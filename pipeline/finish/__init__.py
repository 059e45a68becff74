"""The end of a run: its parts become the products, and what it did is written down."""
