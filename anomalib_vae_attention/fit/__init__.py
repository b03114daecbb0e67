"""How models learn from normal images: in closed form, or by gradient descent."""
