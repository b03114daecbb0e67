"""The command ``vae-attention calibrate``: other thresholds for a trained model, or for an export of it."""
