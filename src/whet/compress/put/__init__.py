"""Putting a changed layer back into the graph, one file a way of storing or computing it."""
