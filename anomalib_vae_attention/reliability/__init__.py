"""Measurements of what is relied on in production: false-positive rates, interruptions, memory over time."""
