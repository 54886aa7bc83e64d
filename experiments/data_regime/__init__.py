"""Keel against Pre-LN as data grow."""
