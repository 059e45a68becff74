"""The command line: words in, words out. Never torch."""
