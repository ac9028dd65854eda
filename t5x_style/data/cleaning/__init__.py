"""Duplicate and contaminated documents."""
