"""Looking at trained models: what each latent looks at, as pictures, and scores on test images."""
