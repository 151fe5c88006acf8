"""Makes patches: the equations (rome), the keys (gather), the values (value, replay), C (statistics)."""
