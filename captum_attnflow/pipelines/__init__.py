"""From a text or an image file to its attribution: the pipelines behind the shell.

One module per task loads a model with its tokenizer or image processor and explains
inputs with it; the attributions that they return show themselves.
"""
