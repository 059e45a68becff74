"""The pages, and what makes those parts of them that the code knows best."""
