"""DECODE_RULES: how a file's bytes become pixels, as a fingerprint says it.

Apart from decode.py, which follows it: a night without work has to know it, and imports no torch.
"""

# Another one whenever the same file would give other pixels.
# 3: floats that are no numbers, JPEGs without an end marker and `interpolation: nearest` give pixels
# of their own.
# Raw photos came without a new number: earlier versions left them out or their rows failed, but for
# those that --include named and of which Pillow took the thumbnail (CHANGELOG.md); no other file
# gives other pixels.
DECODE_RULES = "3"
