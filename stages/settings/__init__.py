"""Settings: what a user can say of each stage, one file a stage. Options are made of them, so they import no library."""
