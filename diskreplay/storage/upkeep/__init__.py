"""Look a store over, make it sound again, copy it: what is done to a store, not with it."""
