"""A trace as lines of text and as a picture."""
