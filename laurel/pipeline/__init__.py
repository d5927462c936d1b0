"""Rooms introduced to each other: recipes made of stages, and the demo."""
