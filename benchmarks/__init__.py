"""Side-by-side measurements; each ends with one line of JSON."""
