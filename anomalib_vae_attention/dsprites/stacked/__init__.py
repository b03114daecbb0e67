"""Many runs side by side on a GPU: the same networks and losses with one more dimension, that of the runs."""
