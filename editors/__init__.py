"""Implicit neural representations of images, and learned edits of their weights."""
