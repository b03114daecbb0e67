"""What works around anomalib and Lightning, or replaces a part of them."""
