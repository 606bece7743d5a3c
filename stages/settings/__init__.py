"""Settings: what a user can choose in each stage, one file a stage. Options are made of them, so they import no library."""
