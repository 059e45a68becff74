"""Those parts of the pages that the code knows best: commands, columns, error codes, the library."""
