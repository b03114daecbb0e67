"""The command ``vae-attention predict``: verdicts, pictures and a report from a trained or exported model."""
