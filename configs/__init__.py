"""Values only: one documented default, and recipes that state their differences."""
