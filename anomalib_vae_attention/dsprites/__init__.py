"""Disentanglement with attention on dSprites: data, models, losses, metrics and plots, without anomalib."""
