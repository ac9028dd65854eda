"""Vocabularies: read, trained, extended, compared."""
