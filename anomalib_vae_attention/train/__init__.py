"""The command ``vae-attention train``: from a folder of good parts to a model, its thresholds and a report."""
