"""Devices and how arrays lie on them: the mesh, and the one rule table."""
