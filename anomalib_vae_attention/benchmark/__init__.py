"""Measuring vae_attention on data sets in MVTec AD's layout."""
