"""CURE."""
