"""Image VAEs of the paper's set-up, trained side by side on one device."""
