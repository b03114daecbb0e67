"""What campaign.py runs: arms and their comparison, and many runs stacked in one set of tensors on a GPU."""
