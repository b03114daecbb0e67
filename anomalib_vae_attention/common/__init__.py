"""What every room uses: files written whole, checks of arguments, pictures, and what is known of the machine."""
