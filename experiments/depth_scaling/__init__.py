"""Loss against depth, at fixed width and at fixed parameters."""
