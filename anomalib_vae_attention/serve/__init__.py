"""The command ``vae-attention serve``: a page on which people try a model on an image."""
