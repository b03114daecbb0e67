"""The VAEs of whole images, as in the paper. Empty, so that dSprites can use the ELBO without anomalib."""
