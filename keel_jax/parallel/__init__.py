"""Devices and how arrays are sharded over them: the mesh, and the one rule table."""
