"""Looking at trained models: what each latent looks at, as pictures, and how good each attention and layer is."""
