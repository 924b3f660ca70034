"""Numbered, forward-only migrations: expand before contract."""
