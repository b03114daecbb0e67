"""Thresholds from normal images alone."""
