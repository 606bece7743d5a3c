"""Students: one file a family, the module that is trained, and the bundle that inference loads."""
