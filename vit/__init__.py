"""The model: a Vision Transformer written from its parts, its weights, preprocessing and class
names.
"""
